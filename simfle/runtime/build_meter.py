"""Progress of a build of shards."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simfle.runtime.console import Console
from simfle.runtime.live_progress import live_progress

LINE_EVERY = 10.0  # seconds between plain progress lines without a terminal


class ProgressMeter:
    """Progress with images/s: a bar on a terminal or in a notebook, otherwise an occasional plain line."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._stage, self._start, self._first, self._said = "", 0.0, 0, 0.0
        self._bar: Progress | None = None
        self.rate = 0.0

    def __enter__(self) -> "ProgressMeter":
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
        )
        self._bar = live_progress(self._console, *columns)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Update the progress of a stage; total 0: not known yet."""
        now = self._clock()
        if not self._stage and self._bar is not None:  # not before: shards that exist print nothing
            self._bar.start()
        if stage != self._stage:
            self._stage, self._start, self._first, self._said = stage, now, done, now
            if self._bar is not None:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._bar.add_task(stage, total=total or None, completed=done, rate=0.0)
        passed = now - self._start
        self.rate = (done - self._first) / passed if passed > 0 else 0.0
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[-1], completed=done, total=total or None, rate=self.rate)
        elif now - self._said >= LINE_EVERY:
            self._said = now
            self._console.print(f"{stage} {done}/{total or '?'} {self.rate:.0f} images/s", highlight=False)
