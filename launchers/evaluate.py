"""Evaluate backbones; see simfle/commands/evaluate.py."""

from simfle.commands.evaluate import main
from simfle.runtime.entrypoint import run_as_main

if __name__ == "__main__":
    run_as_main(main)
