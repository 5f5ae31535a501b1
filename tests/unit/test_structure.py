"""The architecture, held: imports run one way, fronts stay thin, commands answer --help without heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = {
    "simfle.errors",
    "simfle.config.parsing",
    "simfle.config.overrides",
    "simfle.version",
    "simfle.config.schema",
    "simfle.batch",
    "simfle.runtime.provenance",
    "simfle.runtime.entrypoint",
    "simfle.runtime.signals",
    "simfle.runtime.run_files",
    "simfle.runtime.logs",
    "simfle.runtime.console",
}
# What each room may import beside itself and LIGHT. Commands may import all rooms; nobody imports commands.
ALLOWED = {
    "shards": {"shards"},
    "simfle.config.schema": set(),
    "simfle.config.parsing": {"shards.io.atomic"},
    "simfle.config.overrides": set(),
    "simfle.batch": set(),
    "simfle.errors": {"shards.errors"},
    "simfle.version": set(),
    "simfle.runtime.provenance": set(),
    "simfle.runtime.entrypoint": set(),
    "simfle.runtime.signals": set(),
    "simfle.runtime.run_files": {"shards.io.atomic", "shards.io.jsonl"},
    "simfle.runtime.logs": {"shards.printable", "shards.redact"},
    "simfle.runtime.console": {"shards.printable"},
    "simfle.models.losses": set(),
    "simfle.models.collapse_metrics": set(),
    "simfle.optim": set(),
    "simfle.runtime.device": set(),
    "simfle.runtime.zero_stage": set(),
    "simfle.runtime.distributed": {"simfle.runtime.device", "simfle.optim", "simfle.runtime.zero_stage"},
    "simfle.models": {"shards.errors", "simfle.models.losses"},
    "simfle.data": {"shards"},
    "simfle.train": {
        "shards",
        "simfle.models.collapse_metrics",
        "simfle.eval",
        "simfle.data",
        "simfle.models",
        "simfle.models.losses",
        "simfle.optim",
        "simfle.runtime.device",
        "simfle.runtime.distributed",
        "simfle.runtime.zero_stage",
    },
    "simfle.eval": {
        "shards",
        "simfle.data",
        "simfle.models",
        "simfle.models.losses",
        "simfle.optim",
        "simfle.runtime.device",
        "simfle.runtime.distributed",
    },
    "simfle.bench": {
        "shards",
        "simfle.data",
        "simfle.models",
        "simfle.optim",
        "simfle.runtime.device",
        "simfle.runtime.distributed",
        "simfle.train",
    },
    "simfle.api": {
        "shards",
        "simfle.data",
        "simfle.train",
        "simfle.eval",
        "simfle.runtime.device",
        "simfle.runtime.distributed",
    },
    "simfle.doctor": {"shards", "simfle.runtime.device", "simfle.runtime.distributed", "simfle.slurm", "simfle.data"},
    "simfle.plan": {
        "shards.io.atomic",
        "simfle.models",
        "simfle.optim",
        "simfle.runtime.distributed",
        "simfle.runtime.zero_stage",
    },
    # What a page shows is computed by the rooms below it.
    "simfle.report": {
        "shards",
        "simfle.data",
        "simfle.models",
        "simfle.eval",
        "simfle.train.telemetry.reconstructions",
    },
    "simfle.slurm": {
        "shards",
        "simfle.data",
        "simfle.runtime.device",
        "simfle.runtime.distributed",
        "simfle.train",
        "simfle.eval",
    },
}
FILES = sorted([*ROOT.glob("shards/**/*.py"), *ROOT.glob("simfle/**/*.py")])
COMMANDS = sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("launchers/*.py")])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {
                f"{node.module}.{name.name}" for name in node.names if (ROOT / node.module.replace(".", "/")).is_dir()
            }
    return {name for name in found if name.split(".")[0] in ("simfle", "shards", "tools", "launchers")}


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_run_one_way(file: Path) -> None:
    name = module_name(file)
    if name in ("simfle", "simfle.version", "simfle.__main__") or within(name, {"simfle.commands"}):
        assert not any(within(other, {"tools", "launchers"}) for other in imports(file))
        return
    room = next((room for room in sorted(ALLOWED, key=len, reverse=True) if within(name, {room})), None)
    assert room, f"{name} is in no room of the architecture"
    allowed = ALLOWED[room] | {room} | (LIGHT if room != "shards" else set())
    wrong = [other for other in imports(file) if not within(other, allowed) and other not in ("simfle", "shards")]
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_fronts_are_thin(file: Path) -> None:
    if file.name != "check_system.py":  # runs before anything is installed
        assert len(file.read_text().splitlines()) <= 12


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_help_answers_without_heavy_imports(file: Path) -> None:
    if file.name == "check_system.py":
        return
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(file)!r}, '--help']\n"
        "heavy = {'torch', 'cv2', 'numpy', 'timm', 'deepspeed', 'omegaconf', 'pyarrow', 'scipy', 'matplotlib'}\n"
        f"try:\n    runpy.run_path({str(file)!r}, run_name='__main__')\n"
        "finally:\n    print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert "HEAVY []" in done.stderr
