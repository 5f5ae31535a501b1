"""Evaluate backbones; see simfle/commands/evaluate.py."""

from simfle.commands.evaluate import main
from simfle.process import own_process

if __name__ == "__main__":
    own_process(main)
