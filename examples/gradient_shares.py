"""Print the norm of each loss's gradient on the backbone, weighted as in the total, at a run's start and end.

FaceMAE's share is the sum of distillation and reconstruction divided by the sum of all norms.

python examples/gradient_shares.py runs/mine ...
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from simfle.batch import Batch
from simfle.config.schema import PretrainConfig, load
from simfle.data.loader import Loader, RankSlice
from simfle.data.training_data import open_data
from simfle.models.registry import build_method


def first_batch(config: PretrainConfig) -> Batch:
    data = open_data(config.data, config.train.seed, config.train.global_batch, 0)
    loader = Loader(data, config.views, config.data, RankSlice(0, 1, 1, 1), torch.device("cpu"))
    batches = loader.batches(0)
    try:
        return next(batches)
    finally:
        batches.close()
        loader.close()


for run in map(Path, sys.argv[1:]):
    config = load(PretrainConfig, run / "config.yaml")
    batch = first_batch(config)
    weights = {
        "similarity": 1.0,
        "distillation": config.model.distillation_weight,
        "reconstruction": 1.0,
        "grouping": config.model.grouping_weight,
    }
    newest = sorted(run.glob("checkpoints/step-*"))[-1] / "model.safetensors"
    for when in ("start", "end"):
        torch.manual_seed(config.train.seed)
        model = build_method(config.model, config.views).train()
        if when == "end":
            model.load_state_dict(load_file(newest), strict=False)  # checkpoints lack constants such as positions
        losses = model(batch)
        backbone = list(model.online.backbone.parameters())
        norms = {}
        for name in weights.keys() & losses.keys():
            term = weights[name] * losses[name]
            if not term.requires_grad:
                continue
            parts = torch.autograd.grad(term, backbone, retain_graph=True, allow_unused=True)
            norms[name] = sum(float(part.square().sum()) for part in parts if part is not None) ** 0.5
        print(run, when)
        for name, norm in norms.items():
            share = norm / max(sum(norms.values()), 1e-30)
            print(
                f"  {name:15} loss {float(losses[name].detach()):11.4f}   gradient of the backbone {norm:.6f}   "
                f"{share:6.1%}"
            )
        of_face = norms.get("distillation", 0.0) + norms.get("reconstruction", 0.0)
        print(f"  FaceMAE's share of the sum of norms: {of_face / max(sum(norms.values()), 1e-30):.1%}")
