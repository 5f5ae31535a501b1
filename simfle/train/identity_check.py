"""Check that the checkpoints in a folder belong to this run: each records the values that identify its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes
from simfle.config.schema import PretrainConfig, config_digest, load, run_identity
from simfle.errors import UserError
from simfle.runtime import run_files
from simfle.train import extend
from simfle.train.checkpointing.checkpoint import FORMAT, TrainState, complete_checkpoints, state_of

METRICS = "metrics.jsonl"
MAX_NAMED = 8  # maximum number of reported keys


@dataclass(frozen=True)
class StartIdentity:
    """Values that identify the run of this start.

    values: by dotted key, see `simfle.config.schema.run_identity`; digest: of all fields; may_extend: whether the run
    may have another length than its checkpoints (train.extend).
    """

    values: dict[str, Any]
    digest: str
    may_extend: bool

    @classmethod
    def of(cls, config: PretrainConfig) -> "StartIdentity":
        """Return the identity of a start with this configuration."""
        return cls(run_identity(config), config_digest(config), config.train.extend)


def refuse_copies(run: Path) -> None:
    """Raise a UserError if a folder named like a checkpoint has the state of another step."""
    for folder in run_files.copied_checkpoints(run):
        raise UserError(
            f"train.run_dir={run}: checkpoints/{folder.name} has the state of a step other than its name says. "
            "Fix: move this copy out of checkpoints/, or rename it, for example to backup."
        )


def refuse_old_format(run: Path) -> None:
    """Raise a UserError if checkpoints have another format version, because their keys have other names."""
    for folder in complete_checkpoints(run):
        found = run_files.read_state(folder).get("format", FORMAT)
        if found != FORMAT:
            raise UserError(
                f"train.run_dir={run}: {folder.name} has format {found}, but this version reads {FORMAT}. "
                "Fix: use a new train.run_dir, or resume with the version that wrote it."
            )


def refuse_other_checkpoints(run: Path, start: StartIdentity, file: Path) -> int:
    """Return the number of valid checkpoints of this run.

    Args:
        run: run folder.
        start: identity of this start.
        file: config.yaml of the run, which names the keys that differ from checkpoints of an earlier version.

    Raises:
        UserError: If a checkpoint is of a run with another configuration (the error names the differing keys), or the
            run was extended and the configuration has another length.
    """
    states = {folder: state for folder in complete_checkpoints(run) if (state := state_of(folder))}
    lengths = _accepted_lengths(run, start, states)
    ours = {folder: _is_ours(state, start, lengths) for folder, state in states.items()}
    for folder, state in states.items():
        if ours[folder]:
            continue
        if any(ours.values()):
            raise UserError(
                f"train.run_dir={run}: checkpoints/{folder.name} is of a run with another configuration "
                f"({_named(state.identity, start) or 'not recorded by the earlier version'}). "
                "Fix: move it out of checkpoints/."
            )
        if state.identity:
            refuse_difference(run, state.identity, start)
        _refuse_by_file(run, state, start, file)
    return len(states)


def refuse_lost_checkpoints(run: Path, file: Path) -> None:
    """Raise UserError before a start from step 0 over a run whose checkpoints are missing: a disk may not be mounted.

    file: config.yaml of the run. A run that was killed before its first checkpoint was complete does start from step 0:
    it had at most twice train.checkpoint_every steps, because a second checkpoint waits for the first.

    Raises:
        UserError: If checkpoints/ is a broken link, or the metrics have more steps than such a run can have.
    """
    folder = run / "checkpoints"
    if folder.is_symlink() and not folder.is_dir():
        raise UserError(
            f"train.run_dir={run}: checkpoints is a link to {folder.readlink()}, which is not an existing folder. "
            f"Fix: mount that disk, or delete {folder} to start from step 0."
        )
    if not file.exists() or not (run / METRICS).exists() or any(map(run_files.step_from_name, folder.glob("step-*"))):
        return
    step = max((line["step"] for line in run_files.parse_metrics(read_bytes(run / METRICS))), default=0)
    if step > 2 * load(PretrainConfig, file).train.checkpoint_every:
        raise UserError(
            f"train.run_dir={run}: {METRICS} reaches step {step}, but there is no checkpoint: a disk is not mounted, "
            "or they were deleted. "
            f"Fix: restore them, use another train.run_dir, or delete {run / METRICS} to start from "
            "step 0."
        )


def refuse_difference(run: Path, before: dict[str, Any], start: StartIdentity) -> None:
    """Raise a UserError that names the keys in which the values `before` of a run differ from those of this start."""
    if named := _named(before, start):
        only_length = _differing(before, start).keys() <= set(extend.LENGTH) and not start.may_extend
        more = ", or add train.extend=true to train longer" if only_length else ""
        raise UserError(
            f"train.run_dir={run}: a run with another configuration ({named}). Fix: use the old values or "
            f"another train.run_dir{more}"
        )


def _accepted_lengths(run: Path, start: StartIdentity, states: dict[Path, TrainState]) -> list[dict[str, Any]]:
    """Return the lengths that checkpoints of this run may have in addition to that of this start.

    Raises:
        UserError: If the run was extended, and this start has another length without train.extend.
    """
    known = extend.read(run) if states else []
    if not known:
        newest = next((state.identity for state in states.values() if state.identity), None)
        return [extend.length_of(_complete(newest))] if newest and start.may_extend else []
    now, last = extend.length_of(start.values), known[-1]
    if now != last.new and not start.may_extend:
        changed = [key for key in extend.LENGTH if now[key] != last.new.get(key)]
        raise UserError(
            f"train.run_dir={run}: the run was extended to {last.new_steps} steps "
            f"({', '.join(f'{key}: {last.new.get(key)} -> {now[key]}' for key in changed)}). "
            f"Fix: set {' '.join(f'{key}={last.new.get(key)}' for key in changed)}, "
            "or add train.extend=true to train longer"
        )
    return [length for each in known for length in (each.old, each.new)]


def _is_ours(state: TrainState, start: StartIdentity, lengths: list[dict[str, Any]]) -> bool:
    """Return whether a checkpoint is of this run: its identity is equal except for a length that the run has had."""
    if not state.identity:
        return state.config == start.digest
    differing = _differing(state.identity, start).keys()
    own = extend.length_of(_complete(state.identity))
    return not differing or (differing <= set(extend.LENGTH) and own in lengths)


def _refuse_by_file(run: Path, state: TrainState, start: StartIdentity, file: Path) -> None:
    """Compare by the run's config.yaml, for a checkpoint that has only a digest, which differs from this run's."""
    if not file.exists():
        raise UserError(
            f"train.run_dir={run}: checkpoints of a run with another configuration or another version of simfle, "
            f"without its config.yaml. Fix: copy the config.yaml of that run to {run}, or use another train.run_dir."
        )
    before = load(PretrainConfig, file)
    if state.config == config_digest(before):
        refuse_difference(run, run_identity(before), start)
    raise UserError(
        f"{file} is not the configuration of the checkpoints beside it: it was edited, or they are of another run or "
        "another version of simfle. Fix: restore config.yaml and checkpoints of the run, or use another train.run_dir."
    )


def _differing(before: dict[str, Any], start: StartIdentity) -> dict[str, str]:
    """Return the keys whose values differ. A key that an earlier version did not have had its default value."""
    new, old = start.values, _complete(before)
    return {key: f"{old.get(key)} -> {new.get(key)}" for key in old if old.get(key) != new.get(key)}


def _complete(before: dict[str, Any]) -> dict[str, Any]:
    return run_identity(PretrainConfig()) | before


def _named(before: dict[str, Any], start: StartIdentity) -> str:
    """Format differences as `optim.lr: 0.05 -> 0.1`, old and new, or "" if nothing differs or is known."""
    differing = _differing(before, start) if before else {}
    shown = [f"{key}: {change}" for key, change in list(differing.items())[:MAX_NAMED]]
    more = [f"and {len(differing) - MAX_NAMED} more"] if len(differing) > MAX_NAMED else []
    return "; ".join([*shown, *more])
