"""What a run will need and how fast it will be; see simfle/commands/plan_run.py."""

from simfle.commands.plan_run import main

if __name__ == "__main__":
    main()
