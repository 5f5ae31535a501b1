"""train.profile=true: a Chrome trace of a few steps, and a table of the slowest operators.

RUN/profile/rank-00000.json.gz    the trace, for https://ui.perfetto.dev or chrome://tracing
RUN/profile/rank-00000.txt        phases of a step and the slowest operators, as text
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from simfle.config.schema import TrainConfig
from simfle.runtime.distributed import World

PHASES = ("data", "forward", "backward", "reduce", "optimizer", "ema", "report")
OPERATORS = 25  # lines of the table
log = logging.getLogger(__name__)


def phase(name: str) -> record_function:
    """Mark a part of a step in the trace. Without a trace, this costs a microsecond."""
    return record_function(f"simfle.{name}")


class StepProfiler:
    """Trace steps `profile_steps[0]` to `profile_steps[1]` of this start, without changing their results.

    The profiler starts one step earlier, because its start takes time.
    """

    def __init__(self, run: Path, train: TrainConfig, world: World) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # Kineto would log its start and warn if there is no GPU
        first, last = train.profile_steps
        self._stem = run / "profile" / f"rank-{world.rank:05d}"
        self._title = f"steps {first} to {last} of this start, rank {world.rank}"
        self._cuda = world.device.type == "cuda"
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda
        warm = min(1, first - 1)
        plan = schedule(wait=first - 1 - warm, warmup=warm, active=last - first + 1, repeat=1)
        self._left = last
        self._profile: Any = profile(activities=kinds, schedule=plan, on_trace_ready=self._write)
        self._written = False
        self._profile.start()

    def step(self) -> None:
        """Count a finished step."""
        if self._left:
            self._left -= 1
            self._profile.step()
            if not self._left:
                self._profile.stop()

    def close(self) -> None:
        """Write the trace of a run that ends early, or warn that there is none."""
        if self._left:
            with suppress(RuntimeError):  # nothing has been recorded yet
                self._profile.stop()
        if not self._written:
            log.warning("train.profile: the run ended before train.profile_steps; no trace was written")

    def _write(self, done: Any) -> None:
        trace, table = self._stem.with_suffix(".json.gz"), self._stem.with_suffix(".txt")
        try:
            trace.parent.mkdir(exist_ok=True)
            done.export_chrome_trace(str(trace))
            table.write_text(f"{self._title}\n\n{tables(done.key_averages(), cuda=self._cuda)}")
        except OSError as error:
            log.warning("train.profile: %s cannot be written: %s; the run continues", trace, error.strerror)
            self._written = True
            return
        self._written = True
        log.info(
            "train.profile: %s: %s (%.1f MB), open it at https://ui.perfetto.dev; slowest operators in %s",
            *(self._title, trace, trace.stat().st_size / 1e6, table.name),
        )


def tables(events: Any, *, cuda: bool) -> str:
    """Format phases and operators as text. `events` is the result of torch.profiler's key_averages().

    The table gives the host time of phases, and the self time of operators, on the GPU if there is one.
    """
    # On a GPU there are also rows of kernels and marks, whose time is included in their operators.
    events = [event for event in events if event.device_type == DeviceType.CPU]
    marks = {event.key: event for event in events if event.key.startswith("simfle.")}
    lines = [f"{'phase':<12}{'calls':>8}{'ms of the host':>18}"]
    for name in PHASES:
        if event := marks.get(f"simfle.{name}"):
            lines.append(f"{name:<12}{event.count:>8}{event.cpu_time_total / 1000:>18.1f}")
    attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    own = sorted(
        (
            (float(getattr(event, attribute)), event)
            for event in events
            if event.key not in marks and "ProfilerStep" not in event.key
        ),
        key=lambda pair: -pair[0],
    )
    total = sum(time for time, _ in own) or 1.0
    lines += ["", f"{'operator':<56}{'calls':>8}{'ms on the ' + ('GPU' if cuda else 'CPU'):>18}{'share':>8}"]
    lines += [f"{e.key[:55]:<56}{e.count:>8}{time / 1000:>18.1f}{time / total:>8.1%}" for time, e in own[:OPERATORS]]
    return "\n".join(lines) + "\n"


def open_profiler(run: Path, train: TrainConfig, world: World) -> StepProfiler | None:
    """Start a profile for the processes of `train.profile_ranks`, if requested."""
    return StepProfiler(run, train, world) if train.profile and world.rank in train.profile_ranks else None
