"""Export a run's backbones; see simfle/commands/export.py."""

from simfle.commands.export import main

if __name__ == "__main__":
    main()
