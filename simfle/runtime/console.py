"""Rich console for untrusted text: only the console's escape sequences reach the terminal."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from shards.printable import printable


class Console(rich.console.Console):
    """Rich console that escapes control and bidi characters in all text, table cells included."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)  # escaped before its width is measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
