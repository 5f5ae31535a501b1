"""Progress bars of terminals, in notebooks too."""

import io
import time
from typing import Any

from rich.progress import Progress, ProgressColumn

from simfle.runtime.console import Console

WIDTH = 160  # columns of a notebook's line
INTERVAL = 0.2  # seconds between updates


def live_progress(console: Console, *columns: ProgressColumn) -> Progress | None:
    """Return a progress bar for a terminal or a notebook; None for a file or a pipe, which cannot be rewritten."""
    if console.is_jupyter:
        return NotebookProgress(*columns)
    return Progress(*columns, console=console) if console.is_terminal else None


class NotebookProgress(Progress):
    """Progress bar as a line of plain text in a cell's output, which is rewritten in place.

    rich itself needs ipywidgets in the kernel and in the page; updates of a display need neither.
    """

    def __init__(self, *columns: ProgressColumn) -> None:
        own = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=False)
        super().__init__(*columns, console=own, auto_refresh=False)
        self._display: Any = None
        self._shown = 0.0

    def start(self) -> None:
        """Show nothing yet: the first update shows the line."""

    def stop(self) -> None:
        """Show the last state."""
        if self._display is not None:
            self._display.update(self._line(), raw=True)

    def update(self, *task: Any, **fields: Any) -> None:
        """Update a task, and the line at most every 0.2 seconds."""
        super().update(*task, **fields)
        if self._display is None:
            from IPython.display import display

            self._display = display(self._line(), raw=True, display_id=True)
        elif time.monotonic() - self._shown >= INTERVAL:
            self._shown = time.monotonic()
            self._display.update(self._line(), raw=True)

    def _line(self) -> dict[str, str]:
        with self.console.capture() as text:
            self.console.print(self.get_renderable())
        return {"text/plain": text.get().strip()}
