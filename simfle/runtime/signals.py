"""Stop signals. This module has no slow imports: a job must receive signals while torch is still being imported."""

import signal
import threading
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)  # SIGHUP: the terminal is closed


class StopSignal:
    """Flag set by `STOP_SIGNALS`; the training loop checks it at step boundaries only. SIGHUP stays ignored under
    nohup.

    Only the main thread of a process can handle signals: in another thread the flag is never set.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
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
            raise KeyboardInterrupt  # a second Ctrl-C interrupts immediately
        self.signal = signal.Signals(number)
