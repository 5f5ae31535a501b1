"""Pretrain: accelerate launch launchers/pretrain.py CONFIG key=value ... (or python for one process)."""

from simfle.commands.pretrain import main
from simfle.process import own_process

if __name__ == "__main__":
    own_process(main)
