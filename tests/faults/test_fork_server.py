"""The fork server of the tests: a signal to a child at any moment reaches the child, and the parent survives."""

import signal
from pathlib import Path

import pytest
from faults import scenario as telling
from faults.fork_server import ForkServer

# In short sleeps: a signal between Python's last check and the system call does not end that sleep.
WAITS = "import time\nfor _ in range(1200):\n    time.sleep(0.05)\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR2, -signal.SIGUSR2)]
)
def test_a_signal_is_the_childs_from_its_first_moment(number: signal.Signals, code: int, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    nursery = ForkServer(tmp_path / "tmp")
    for attempt in range(20):
        child = nursery.start([str(script)], tmp_path / f"{attempt}.log")
        child.send(number)
        assert child.wait() == code, child.output
        assert nursery.process.poll() is None
    nursery.close()


def test_children_end_with_the_nursery(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    nursery = ForkServer(tmp_path / "tmp")
    children = [nursery.start([str(script)], tmp_path / f"{number}.log") for number in range(2)]
    assert [child.poll() for child in children] == [None, None]
    assert nursery.process.stdin is not None
    nursery.process.stdin.close()  # as when the tests are killed
    assert nursery.process.wait(120) == 0
    assert telling.gone(lambda: [each for child in children for each in telling.session(child.pid)])
