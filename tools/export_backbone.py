"""Export a run's backbones; see simfle/commands/export_backbone.py."""

from simfle.commands.export_backbone import main

if __name__ == "__main__":
    main()
