"""List runs and where they stand. See --help."""

from simfle.commands.runs import main

if __name__ == "__main__":
    main()
