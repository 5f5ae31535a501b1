"""Predict resources and speed of a run; see simfle/commands/plan.py."""

from simfle.commands.plan import main

if __name__ == "__main__":
    main()
