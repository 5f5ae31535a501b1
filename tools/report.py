"""Write the report of a run; see simfle/commands/report.py."""

from simfle.commands.report import main

if __name__ == "__main__":
    main()
