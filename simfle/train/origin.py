"""Whether the checkpoints of a folder are those of this run: each keeps the values that make a run this run."""

from pathlib import Path
from typing import Any

from shards.files import read_bytes
from simfle import told
from simfle.config import PretrainConfig, digest, identity, load
from simfle.errors import UserError
from simfle.train.checkpoint import Progress, complete, state_of

METRICS = "metrics.jsonl"
MOST = 8  # differing keys that are named


def refuse_copies(run: Path) -> None:
    """Raise a UserError where a folder named like a checkpoint holds the state of another step."""
    for folder in told.copies(run):
        raise UserError(
            f"train.run={run}: checkpoints/{folder.name} holds the state of another step than its name says. "
            "Fix: move this copy out of checkpoints/, or give it another name, such as backup"
        )


def refuse_other_checkpoints(run: Path, config: PretrainConfig, file: Path) -> int:
    """How many checkpoints are of this run. Damaged ones cannot tell, and count as none.

    file: the run's config.yaml, which names the keys that differ from checkpoints of an earlier version.

    Raises:
        UserError: one is of a run with another configuration; the differing keys are named.
    """
    states = {folder: state for folder in complete(run) if (state := state_of(folder))}
    ours = {folder: _is_ours(state, config) for folder, state in states.items()}
    for folder, state in states.items():
        if ours[folder]:
            continue
        if any(ours.values()):
            raise UserError(
                f"train.run={run}: checkpoints/{folder.name} is of a run with another configuration "
                f"({_named(state.identity, config) or 'an earlier version did not keep it'}). "
                "Fix: move it out of checkpoints/"
            )
        if state.identity:
            refuse_difference(run, state.identity, config)
        _refuse_by_file(run, state, config, file)
    return len(states)


def refuse_lost_checkpoints(run: Path, file: Path) -> None:
    """Refuse to start afresh over a run whose checkpoints are not there: a disk may not be mounted.

    file: the run's config.yaml. A run that was killed before its first checkpoint stood does start afresh: it had not
    got beyond twice train.checkpoint_every, for a second checkpoint waits for the first.

    Raises:
        UserError: checkpoints/ is a link that leads nowhere, or the metrics tell of more steps than that.
    """
    folder = run / "checkpoints"
    if folder.is_symlink() and not folder.is_dir():
        raise UserError(
            f"train.run={run}: checkpoints is a link to {folder.readlink()}, which is not a folder that is there. "
            f"Fix: mount that disk, or delete {folder} for a run that is to start afresh"
        )
    if not file.exists() or not (run / METRICS).exists() or any(map(told.step_of, folder.glob("step-*"))):
        return
    step = max((line["step"] for line in told.metrics(read_bytes(run / METRICS))), default=0)
    if step > 2 * load(PretrainConfig, file).train.checkpoint_every:
        raise UserError(
            f"train.run={run}: {METRICS} tells of step {step}, but there is no checkpoint: a disk is not mounted, or "
            f"they were deleted. Fix: put them back, or take another train.run; to start afresh here delete "
            f"{run / METRICS}"
        )


def refuse_difference(run: Path, before: dict[str, Any], config: PretrainConfig) -> None:
    """Raise a UserError that names the keys in which a run's values, `before`, are not those of `config`."""
    if named := _named(before, config):
        raise UserError(
            f"{run} holds a run with another configuration ({named}); give the old values, or another train.run"
        )


def _is_ours(state: Progress, config: PretrainConfig) -> bool:
    return not _differing(state.identity, config) if state.identity else state.config == digest(config)


def _refuse_by_file(run: Path, state: Progress, config: PretrainConfig, file: Path) -> None:
    """A checkpoint that has the digest of its configuration only, and another one than this run."""
    if not file.exists():
        raise UserError(
            f"{run} holds checkpoints of a run with another configuration, or of another version of simfle, and no "
            f"config.yaml that tells which; copy that run's config.yaml into {run}, or take another train.run"
        )
    before = load(PretrainConfig, file)
    if state.config == digest(before):
        refuse_difference(run, identity(before), config)
    raise UserError(
        f"{file} is not the configuration of the checkpoints beside it: it was changed, or they are of another run or "
        "another version of simfle. Fix: put the run's own config.yaml and checkpoints back, or take another train.run"
    )


def _differing(before: dict[str, Any], config: PretrainConfig) -> dict[str, str]:
    """The keys of other values. One that an earlier version did not have yet had its default there."""
    new = identity(config)
    old = identity(type(config)()) | before
    return {key: f"{old.get(key)} -> {new.get(key)}" for key in old if old.get(key) != new.get(key)}


def _named(before: dict[str, Any], config: PretrainConfig) -> str:
    """`optim.lr: 0.05 -> 0.1`, old and new; empty where nothing differs or nothing is known."""
    differing = _differing(before, config) if before else {}
    shown = [f"{key}: {change}" for key, change in list(differing.items())[:MOST]]
    more = [f"and {len(differing) - MOST} more"] if len(differing) > MOST else []
    return "; ".join([*shown, *more])
