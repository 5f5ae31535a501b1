"""The whole line in minutes; see simfle/commands/quickstart.py."""

from simfle.commands.quickstart import main

if __name__ == "__main__":
    main()
