"""Predict resources and speed of a run; see simfle/commands/plan_run.py."""

from simfle.commands.plan_run import main

if __name__ == "__main__":
    main()
