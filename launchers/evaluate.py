"""Evaluate backbones; see simfle/commands/evaluate.py."""

from simfle.commands.evaluate import main

if __name__ == "__main__":
    main()
