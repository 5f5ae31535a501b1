"""Run the comparison in docs/results.md: pretrain each method on FERPlus, evaluate it, measure its effective rank.

python examples/ferplus_benchmark.py OUT --ferplus SHARDS --mtfl SHARDS [--methods byol simfle] [--seeds 0 1 2]

Every stage resumes: rerun the command after an interruption. OUT/METHOD-SEED are runs, OUT/results their evaluations,
OUT/ranks.txt the effective ranks on the validation split.
"""

import argparse
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/pretrain/ferplus_cpu.yaml"
EXAMPLES = Path(__file__).parent
# Differences to CONFIG. Each value was selected on the validation split (docs/results.md).
METHODS: dict[str, list[str]] = {
    "simclr": ["model.method=simclr"],
    "moco": ["model.method=moco", "model.contrastive.queue_size=4096"],
    "byol": ["model.method=byol"],
    "byol-decorrelated": ["model.method=byol", "model.decorrelation_weight=0.02"],
    "simsiam": ["model.method=simsiam"],
    "swav": ["model.method=swav", "model.contrastive.prototypes=300"],
    "vicreg": ["model.method=vicreg"],
    "dino": ["model.method=dino", "model.dino.prototypes=1024"],
    "care": ["model.method=care", "model.output_stride=16"],
    "simfle": ["model.method=simfle"],
    "simfle-decorrelated": ["model.method=simfle", "model.decorrelation_weight=0.02"],
    "mae": [
        "model.method=mae",
        "model.backbone=vit_tiny_patch16_224",
        "views.size=96",
        "views.color_jitter_prob=0",
        "views.grayscale_prob=0",
    ],
}
PROTOCOLS = "protocols=[linear_fast,linear_fast@0.1,linear_fast@0.01,knn]"


def simfle(*words: str) -> None:
    """Run `simfle WORDS` in a process; end this program with its exit status if it fails."""
    print("simfle", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "simfle", *words], check=False).returncode
    if code:
        sys.exit(code)


def train(run: Path, method: str, seed: int, shards: str, steps: int) -> None:
    """Pretrain one method, or resume it."""
    own = [*METHODS[method], f"train.seed={seed}", f"train.steps={steps}", f"train.run_dir={run}"]
    simfle("pretrain", CONFIG, f"data.shards=[{shards}]", *own)


def evaluate(run: Path, benchmark: str, protocols: str, seed: int, results: Path) -> None:
    """Evaluate a run's last checkpoint and, once per shape, a random network with the same seed."""
    words = [f"benchmarks=[{benchmark}]", protocols, f"seeds=[{seed}]", "linear_fast.epochs=30"]
    words += ["recalibrate_bn=random", f"out={results}"]
    simfle("evaluate", "--run", str(run), *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ferplus", required=True, help="shards of simfle shards build ferplus")
    parser.add_argument("--mtfl", help="shards of simfle shards build mtfl; without them no landmarks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    for seed in given.seeds:
        for method in given.methods:
            run = given.out / f"{method}-{seed}"
            train(run, method, seed, given.ferplus, given.steps)
            evaluate(run, f"ferplus={given.ferplus}", PROTOCOLS, seed, given.out / "results")
            if given.mtfl:
                evaluate(run, f"mtfl={given.mtfl}", "protocols=[landmarks,linear_fast]", seed, given.out / "results")
            command = [sys.executable, str(EXAMPLES / "effective_rank.py"), given.ferplus, str(run)]
            with (given.out / "ranks.txt").open("a") as file:
                subprocess.run(command, stdout=file, check=True)


if __name__ == "__main__":
    main()
