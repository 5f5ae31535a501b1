"""Write the checkpoints of steps 6 and 8, keeping one: python write_checkpoints.py RUN."""

import sys
from pathlib import Path

import torch

from simfle.train.checkpointing import checkpoint

for step in (6, 8):
    progress = checkpoint.TrainState(step, step * 8, "config", "corpus", "sgd")
    checkpoint.write(Path(sys.argv[1]), progress, {"a": torch.full((9,), float(step))}, {"a.momentum": torch.ones(9)})
    checkpoint.prune(Path(sys.argv[1]), 1)
