"""Log a run to Weights & Biases and MLflow through accelerate's trackers.

A thread per service starts the tracker, sends the metrics and closes the tracker, so training never waits for a network
or a disk. RUN/loggers.json keeps the ids of the run at the services: a resumed run continues there. Services cannot
delete what they received, so steps that are repeated after a resume arrive twice. Both points have the same step, and
the same values where training is deterministic.
"""

import importlib.metadata
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import loads_object
from shards.redact import redact_secrets, to_json
from simfle.config.parsing import flatten
from simfle.config.schema import PretrainConfig
from simfle.errors import UserError
from simfle.runtime.signals import STOP_SIGNALS

FILE = "loggers.json"
PROJECT = "simfle"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow")}  # any of them is enough
RETRY_SECONDS = 60.0  # pause after a failure
CLOSE_SECONDS = 20.0  # maximum wait for all services at the end of a run
UPLOAD_SECONDS = 15.0  # of these, for the upload by W&B's own process
CONNECT_SECONDS = 30  # for the first answer of a service
MAX_WAITING = 10_000  # logged steps that wait for a service, about 40 MB
MAX_PARAM_LENGTH = 500  # characters, the limit of older MLflow servers
log = logging.getLogger(__name__)
Point = tuple[int, float, dict[str, float]]  # step, seconds since 1970, metrics
_state_lock = threading.Lock()


def check_installed(loggers: Sequence[str]) -> None:
    """Raise UserError if the package of one of `train.loggers` is not installed. Imports none of them."""
    for name in loggers:
        if not any(map(_is_installed, PACKAGES[name])):
            raise UserError(f"train.loggers=[{name}]: not installed. Fix: pip install 'simfle[{name}]'.")


def _is_installed(package: str) -> bool:
    # A folder wandb/ in the working directory, written by W&B, would be found as a module.
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Service(Protocol):
    """One service. All methods are called by one thread, and may fail or block."""

    advice: str

    def start(self) -> None:
        """Start or continue the run at the service; called again after a failure."""

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Send metrics of an optimizer step. seconds: when they were logged, since 1970."""

    def finish(self, complete: bool) -> None:
        """Close the run if it was started. complete: whether training has reached its last step."""


class RunLoggers:
    """Loggers of `train.loggers`. Only the main process opens them."""

    def __init__(self, config: PretrainConfig) -> None:
        services: dict[str, type[WandbService | MlflowService]] = {"wandb": WandbService, "mlflow": MlflowService}
        ids = RunIds(Path(config.train.run_dir) / FILE)
        self._threads = [LoggerThread(name, services[name](config, ids)) for name in config.train.loggers]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand metrics of an optimizer step to the threads. Never blocks."""
        for each in self._threads:
            each.log(step, metrics)

    def close(self, *, complete: bool) -> None:
        """Send what is waiting and close the runs, in at most `CLOSE_SECONDS`."""
        end = time.monotonic() + CLOSE_SECONDS
        for each in self._threads:
            each.end(complete)
        for each in self._threads:
            each.join(max(0.0, end - time.monotonic()))
        _reset_accelerate()


class LoggerThread:
    """Thread that sends metrics to one service, in order. It retries after a failure, which prints one warning."""

    def __init__(self, name: str, service: Service) -> None:
        self._name, self._service = name, service
        self._waiting: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._complete = self._started = self._warned = False
        # A daemon: a hanging connection must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put((step, time.time(), metrics))
        else:
            self._warn(f"{MAX_WAITING} logged steps are waiting; further ones are not sent")

    def end(self, complete: bool) -> None:
        """Request the end of the thread, after all waiting metrics. A failure is not retried from now on."""
        self._complete = complete
        self._ending.set()
        self._waiting.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the thread for at most `seconds`."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"not everything was sent within {CLOSE_SECONDS:g} s")

    def _run(self) -> None:
        # W&B's process inherits this. Slurm sends USR2 to all processes of a job, and it would end that one.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        point: Point | None = None
        if self._try(lambda: self._send(None)):
            while (point := self._waiting.get()) is not None and self._try(lambda: self._send(point)):
                pass
        self._ending.wait()
        self._try(lambda: self._service.finish(self._complete))

    def _send(self, point: Point | None) -> None:
        """Send a point. Start the run at the service first, also if an attempt shows that its process has died."""
        if self._started and point is not None:
            with suppress(Exception):
                self._service.log(*point)
                return
            self._started = False
        self._service.start()
        self._started = True
        if point is not None:
            self._service.log(*point)

    def _try(self, call: Callable[[], None]) -> bool:
        """Call until there is no error. Return False for an error at the end of the run."""
        while True:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - of any kind: training continues
                words = str(redact_secrets((str(error).splitlines() or [""])[0])).rstrip(".")
                self._warn(
                    f"{type(error).__name__}: {words}; training continues, with retries every {RETRY_SECONDS:g} s"
                )
            else:
                return True
            if self._ending.wait(RETRY_SECONDS):
                return False

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("train.loggers=[%s]: %s. Fix: %s.", self._name, problem, self._service.advice)


class RunIds:
    """Ids of the run at the services, in RUN/loggers.json."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()

    def get(self, service: str) -> dict[str, Any]:
        """Return what was recorded for a service; {} if there is nothing, or the file is corrupt."""
        with self._lock:
            found = self._read().get(service)
        return found if isinstance(found, dict) else {}

    def put(self, service: str, facts: dict[str, Any]) -> None:
        """Record `facts` for a service, without secrets in URLs."""
        with self._lock:
            replace_text(self._file, to_json(self._read() | {service: facts}, indent=1))

    def _read(self) -> dict[str, Any]:
        try:
            return loads_object(read_bytes(self._file))
        except (OSError, ValueError):
            return {}


class WandbService:
    """Weights & Biases. Its files are in RUN/wandb; it reads WANDB_MODE, WANDB_API_KEY and WANDB_PROJECT itself."""

    def __init__(self, config: PretrainConfig, ids: RunIds) -> None:
        self._run, self._ids = Path(config.train.run_dir), ids
        self._config = redact_secrets(asdict(config))
        self._tracker: Any = None
        self._is_ours = False  # W&B's process
        self.advice = (
            f"run wandb login, or set WANDB_MODE=offline and run wandb sync {self._run / 'wandb'}/*run-* later"
        )

    def start(self) -> None:
        with _environment(WANDB_ERROR_REPORTING="false"):
            import wandb
            from accelerate.tracking import WandBTracker

            if self._is_ours:  # not the first attempt: W&B's process has failed, or was killed
                with suppress(Exception):
                    wandb.teardown()
            _start_accelerate()
            run_id = self._ids.get("wandb").get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8)
            self._ids.put("wandb", {"id": run_id})
            self._is_ours = self._is_ours or "WANDB_SERVICE" not in os.environ
            wandb.setup(wandb.Settings(silent=True))  # without a key it would prompt for one, and wait
            tracker = WandBTracker(
                os.environ.get("WANDB_PROJECT", PROJECT),
                id=str(run_id),
                resume="allow",
                reinit="create_new",  # leave another run of a notebook alone
                name=os.environ.get("WANDB_NAME", self._run.resolve().name),
                dir=str(self._run),
                config=self._config,
                settings=self._settings(),
            )
            tracker.start()
        # Not W&B's own step, which must grow: after a resume, W&B would drop the steps until those that it has.
        tracker.run.define_metric("step")
        tracker.run.define_metric("*", step_metric="step")
        self._tracker = tracker
        log.info("train.loggers=[wandb]: run %s, %s", run_id, "offline" if tracker.run.offline else tracker.run.url)

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        self._tracker.log({"step": step, **metrics})

    def finish(self, complete: bool) -> None:
        try:
            if self._tracker is not None:
                self._tracker.run.finish(exit_code=0 if complete else 1)  # the tracker's own finish() means complete
        finally:
            if self._is_ours and (wandb := sys.modules.get("wandb")) is not None:
                wandb.teardown()

    def _settings(self) -> Any:
        """Return settings that send metrics and the configuration only."""
        import wandb

        return wandb.Settings(
            silent=True,  # failures are reported by LoggerThread
            console="off",  # no copy of the output
            x_disable_meta=True,  # no command line, which may contain URLs with passwords
            disable_git=True,  # no remote URL, no uncommitted code
            save_code=False,
            init_timeout=CONNECT_SECONDS,
            x_transaction_log_flush_interval=1.0,  # seconds of metrics that are lost if its process is killed
            finish_timeout=UPLOAD_SECONDS,
            finish_timeout_raises=True,
            stop_fn=lambda: None,  # the button of the web page would send SIGINT
        )


class MlflowService:
    """MLflow: the store of MLFLOW_TRACKING_URI, otherwise an SQLite database in RUN/mlflow."""

    # Its own retries would take minutes; LoggerThread retries as well.
    ENVIRONMENT: ClassVar[dict[str, str]] = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(CONNECT_SECONDS),
    }
    advice = "check MLFLOW_TRACKING_URI, or unset it to log to a local database in the run folder"

    def __init__(self, config: PretrainConfig, ids: RunIds) -> None:
        self._run, self._ids = Path(config.train.run_dir), ids
        params = flatten(redact_secrets(asdict(config)))
        self._params = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in params.items()}
        self._tracker: Any = None
        self._is_local = False

    def start(self) -> None:
        with _environment(**self.ENVIRONMENT):
            import mlflow
            from accelerate.tracking import MLflowTracker

            _start_accelerate()
            folder = self._run.absolute() / "mlflow"
            if not mlflow.is_tracking_uri_set():
                self._is_local = True
                folder.mkdir(exist_ok=True)
                mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            if self._tracker is None:
                where = "" if self._is_local else str(redact_secrets(mlflow.get_tracking_uri()))
                known = self._ids.get("mlflow")
                tracker = MLflowTracker(
                    PROJECT,
                    logging_dir=str(folder / "artifacts") if self._is_local else None,
                    run_id=known.get("run_id") if known.get("tracking_uri") == where else None,
                    run_name=self._run.resolve().name,
                    tags=_redacted_tags(),
                )
                tracker.start()
                self._tracker = tracker
                self._ids.put("mlflow", {"run_id": tracker.tracker.info.run_id, "tracking_uri": where})
        # A parameter cannot change: after a resume with another train.log_every, MLflow keeps that of the first start.
        known = self._tracker.tracker.data.params
        self._tracker.store_init_configuration({k: value for k, value in self._params.items() if k not in known})
        log.info("train.loggers=[mlflow]: run %s", self._tracker.tracker.info.run_id)

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        with _environment(**self.ENVIRONMENT):
            self._tracker.log(metrics, step=step, timestamp=int(seconds * 1000))

    def finish(self, complete: bool) -> None:
        import mlflow

        try:
            if self._tracker is not None:
                with _environment(**self.ENVIRONMENT):
                    mlflow.end_run("FINISHED" if complete else "KILLED")  # the tracker's own finish() means FINISHED
        finally:
            if self._is_local:
                none: Any = None  # restores MLflow's default; its annotation lacks this
                mlflow.set_tracking_uri(none)


def _redacted_tags() -> dict[str, str] | None:
    """Return replacements for those of MLflow's own tags that contain secrets, such as a token in git's remote URL."""
    from mlflow.tracking.context.registry import resolve_tags

    found = {name: value for name, value in resolve_tags().items() if isinstance(value, str)}
    return {name: redact_secrets(value) for name, value in found.items() if redact_secrets(value) != value} or None


def _start_accelerate() -> None:
    """Set accelerate's process state, which its trackers need for their log messages."""
    from accelerate.state import PartialState

    with _state_lock, _environment(ACCELERATE_TORCH_DEVICE="cpu"):  # otherwise it would choose and check a GPU
        PartialState()


def _reset_accelerate() -> None:
    """Clear accelerate's process state: the same process may train again, or use accelerate itself."""
    with suppress(ImportError), _state_lock:
        from accelerate.state import PartialState

        PartialState._reset_state()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables that are not set, and unset them again."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
