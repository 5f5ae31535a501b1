"""Run the full pipeline on synthetic or your own faces; see simfle/commands/quickstart.py."""

from simfle.commands.quickstart import main

if __name__ == "__main__":
    main()
