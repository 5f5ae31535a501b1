"""Pretrain: accelerate launch launchers/pretrain.py CONFIG key=value ... (or python for one process)."""

from simfle.commands.pretrain import main
from simfle.runtime.entrypoint import run_as_main

if __name__ == "__main__":
    run_as_main(main)
