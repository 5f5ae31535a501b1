"""The stop signal. Nothing heavy is imported here: a job must hear it while torch is still being loaded."""

import signal
import threading
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)  # the last: a terminal is closed


class StopFlag:
    """Raised by `STOP_SIGNALS`; the training loop looks at it at step boundaries only. nohup's SIGHUP stays ignored.

    Only a process's main thread may change what signals do: within another one nothing raises it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopFlag":
        main = threading.current_thread() is threading.main_thread()
        for name in STOP_SIGNALS if main else ():
            if name == signal.SIGHUP and signal.getsignal(name) == signal.SIG_IGN:
                continue
            self._previous[name] = signal.signal(name, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signal = signal.Signals(number)
