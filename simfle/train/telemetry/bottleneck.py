"""Diagnose from its first steps whether data or compute limits a run, and recommend a change."""

from dataclasses import dataclass

STEPS = 20  # number of steps that are measured after the first one, which warms up
WAITING = 0.1  # fraction of the time above which a run is data-bound


@dataclass(frozen=True)
class ThroughputFacts:
    """Inputs of the advice. cores: cores available to the process, divided by the processes that share them."""

    device: str
    backend: str
    threads: int
    cores: int
    precision: str
    remote: bool = False
    dali: bool = False


def diagnose(wait: float, facts: ThroughputFacts) -> str:
    """Return one line: data-bound or compute-bound, and advice. wait: fraction of time waiting for data, 0 to 1."""
    if wait < WAITING:
        steps = []
        if facts.precision == "fp32":
            steps.append("train.precision=bf16")
        if facts.device == "cuda":
            steps += ["a larger train.global_batch with train.micro_batch=auto", "model.compile=true"]
        steps.append("more processes")
        return f"data wait {wait:.0%}: compute-bound; to speed up, try {_listed(steps)}; train.profile=true shows where"
    steps = []
    if facts.threads < facts.cores:
        steps.append(f"more data.decode_threads ({facts.threads} of {facts.cores} cores now)")
    if facts.device == "cuda" and facts.backend != "dali":
        steps.append("data.backend=dali" if facts.dali else "DALI (pip install 'simfle[dali]')")
    if facts.remote:
        steps.append("shards on a local disk")
    if not steps and facts.device == "cuda":
        steps.append("more cores per GPU" if facts.backend != "dali" else "shards on a faster disk")
    steps.append("shards of smaller images (build --shorter-side)")
    return f"data wait {wait:.0%}: data-bound; to speed up, try {_listed(steps)}"


def _listed(steps: list[str]) -> str:
    return ", ".join(steps[:-1]) + (" or " if steps[:-1] else "") + steps[-1]
