"""List runs with their status. See --help."""

from simfle.commands.runs import main

if __name__ == "__main__":
    main()
