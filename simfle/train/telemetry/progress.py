"""Print progress: a bar on a terminal or in a notebook, a line every few seconds in a log."""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from simfle.runtime.console import Console
from simfle.runtime.live_progress import live_progress
from simfle.train.telemetry.bottleneck import STEPS, ThroughputFacts, diagnose

SECONDS_BETWEEN_LINES = 15.0


class ProgressReporter:
    """Print the plan before step 1, then the progress. Only on the main process."""

    def __init__(self, steps: int, first: int, *, enabled: bool) -> None:
        self.steps, self.enabled = steps, enabled
        self._console = Console(file=sys.stderr)
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
        self._bar = live_progress(self._console, *columns, TimeRemainingColumn()) if enabled else None
        self._last_line = 0.0
        self._seen = 0
        self._speed = 0.0
        self._wait = 0.0
        self._rank = self._probe = ""
        self.baseline = "random"  # name of the initial weights
        self._seconds = self._waited = 0.0
        self._facts: ThroughputFacts | None = None
        if self._bar is not None:
            self._task = self._bar.add_task("starting", total=steps, completed=first)

    def __enter__(self) -> "ProgressReporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._write_or_mute(self._bar.stop)

    def start(self, plan: str, facts: ThroughputFacts) -> None:
        """Print the lines of the plan. `facts` are used for the advice on speed after the first steps."""
        if not self.enabled:
            return
        for line in plan.splitlines():
            self._say(line)
        if self._bar is not None:
            self._write_or_mute(self._bar.start)
        self._facts = facts

    def advance(
        self,
        step: int,
        losses: dict[str, float],
        speed: float,
        seconds: float,
        waited: float,
        measures: dict[str, dict[str, float]],
    ) -> None:
        """Print the progress after a step.

        Args:
            step: finished step.
            losses: total loss under "total", and the other losses by name.
            speed: images/s over all processes.
            seconds: duration of the step.
            waited: seconds of it spent waiting for data.
            measures: measures of telemetry and the monitor in this step, if any.
        """
        if not self.enabled:
            return
        # The speed is smoothed over about ten steps, because single steps are noisy. The first step, which warms up, is
        # ignored.
        self._seen += 1
        keep = 0.9 if self._seen > 2 else 0.0
        self._speed = keep * self._speed + (1 - keep) * speed
        self._wait = keep * self._wait + (1 - keep) * waited / seconds
        if features := measures.get("features"):
            initial = features.get("random_rank", math.nan)
            self._rank = f"  rank {features['rank']:.1f} ({self.baseline} {initial:.1f})"
        if probe := measures.get("monitor"):
            self._probe = f"  linear {probe['linear']:.3f}  kNN {probe['knn']:.3f}"
        terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if name != "total")
        loss = f"loss {losses['total']:.4f}" + (f" ({terms})" if len(losses) > 2 else "")
        text = f"{loss}  {self._speed:.1f} images/s  data wait {self._wait:.0%}{self._rank}{self._probe}"
        if self._bar is not None:
            self._write_or_mute(partial(self._bar.update, self._task, completed=step, description=text))
        elif step == self.steps or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(f"step {step}/{self.steps}  {text}")
        if self._seen > 1:
            self._seconds += seconds
            self._waited += waited
        if self._seen == 1 + STEPS and self._facts is not None:  # once
            self._say(diagnose(self._waited / self._seconds, self._facts))

    def _say(self, text: str) -> None:
        self._write_or_mute(partial(self._console.print, text, highlight=False, markup=False, soft_wrap=True))

    def _write_or_mute(self, write: Callable[[], object]) -> None:
        """Write text. On an error, mute further output: `| head` closed the pipe, or the terminal was closed."""
        try:
            write()
        except (OSError, SystemExit):  # SystemExit: rich's reaction to a closed pipe
            self.enabled, self._console.quiet = False, True
            with suppress(OSError, ValueError):  # ValueError: a notebook's stderr has no file descriptor
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, sys.stderr.fileno())
                os.close(null)
