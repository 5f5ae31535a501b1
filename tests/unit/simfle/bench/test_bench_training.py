"""Benches of training, checkpoints and starting measure what they say; the figures themselves are not judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simfle.bench.runs import Measurement, run_once
from simfle.bench.startup import SMALL
from simfle.commands.bench.startup import subcommands
from simfle.commands.main import COMMANDS
from simfle.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
# Both run in one process, because importing torch takes seconds. The run must have continued and been saved.
PROGRAM = """
import sys
from pathlib import Path
from simfle.bench import checkpoint, train
from simfle.commands.app import run
from simfle.commands.bench import checkpoint as bench_checkpoint, train as bench_train

faces, out, *settings = sys.argv[1:]
seen = []
for module, room in ((bench_train, train), (bench_checkpoint, checkpoint)):
    measure = room.measure
    def spied(run, steps, rounds, measure=measure):
        found = measure(run, steps, rounds)
        folders = sorted(path.name for path in run.run_dir.glob("checkpoints/step-*"))
        seen.append((run.step, len(folders), run.loader.prefetch))
        return found
    room.measure = spied
    sys.argv = ["bench", f"data.shards=[{faces}]", *settings, "--steps", "2", "--rounds", "1"]
    sys.argv += ["--out", f"{out}/{room.__name__}.json"]
    try:
        module.main()
    except SystemExit as end:
        assert not end.code, end.code
print("SEEN", seen)
"""


def test_training_and_checkpoints_are_measured_on_a_real_run(faces: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-c",
        PROGRAM,
        str(faces),
        str(tmp_path),
        *SMALL,
        "train.device=cpu",
        "data.decode_threads=1",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Two rounds, the first to warm up: prefetch + 1 steps, 2 with data, 2 without; 2 + 1 + 2 for checkpoints.
    assert "SEEN [(14, 2, 2), (10, 2, 2)]" in done.stdout
    train = json.loads((tmp_path / "simfle.bench.train.json").read_text())
    both = train["ways"]["with data"]["seconds"], train["ways"]["loader-free"]["seconds"]
    assert train["against_loader_free"] == pytest.approx(both[1][0] / both[0][0])
    assert train["images_per_second"] == pytest.approx(2 * 16 / both[0][0])
    assert 0 <= train["shares"]["data"] < 1
    written = json.loads((tmp_path / "simfle.bench.checkpoint.json").read_text())
    assert written["MB/s"] == pytest.approx(written["bytes"] / 1e6 / written["ways"]["write"]["seconds"][0])
    share = written["ways"]["copy"]["seconds"][0] / (500 * written["ways"]["steps"]["seconds"][0] / 2)
    assert written["held_up"] == pytest.approx(share)
    assert {"command", "machine", "versions"} <= train.keys() & written.keys()


def test_a_turn_of_another_process_counts_its_cpu_time_and_tells_its_failure() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    use = run_once([sys.executable, "-c", busy], [0])
    assert use.cpu >= 0.3
    assert use.seconds > 0
    large = "import os; block = bytearray(2**27); raise SystemExit(os.environ['WORD'] != 'given')"
    assert run_once([sys.executable, "-c", large], [0], {"WORD": "given"}).peak > 2**27
    assert run_once([sys.executable, "-c", "import sys; sys.exit(3)"], [3])[0] > 0
    with pytest.raises(UserError, match="exited with code 1: the reason"):
        run_once([sys.executable, "-c", "import sys; sys.exit('the reason')"], [0])


def test_turns_are_summed_up_by_their_median() -> None:
    turns = Measurement("work", 2.0, [3.0, 1.0, 2.5], [0.3, 0.1, 0.2])
    assert (turns.median, turns.cpu_median) == (2.5, 0.2)
    assert turns.as_dict() | {"lowest": 1.0, "highest": 3.0, "aim": 2.0} == turns.as_dict()


def test_every_subcommand_is_asked_for_its_help() -> None:
    names = [" ".join(words) for words in subcommands()]
    assert {"pretrain", "shards build", "bench startup", "slurm pretrain"} <= set(names)
    assert not set(names) & {"shards", "bench", "slurm"}  # groups
    assert {name.split()[0] for name in names} == set(COMMANDS)
