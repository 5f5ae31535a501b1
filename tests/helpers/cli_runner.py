"""Run command lines of tools and launchers in this process: starting a process takes a second, mostly for imports.

Tests of what a process does (signals, limits, environment, several at once) start real ones.
"""

import contextlib
import io
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
WORKING = ("build_shards", "verify_shards", "find_duplicates", "inspect_shards", "index_shards")  # have --workers


def command_module(script: Path) -> str:
    """The module whose `main` a script of tools/ or launchers/ calls."""
    (module,) = re.findall(r"^from (simfle\.commands\.[\w.]+) import main$", script.read_text(), re.MULTILINE)
    return module


def tool(name: str) -> list[object]:
    """The words that start tools/NAME.py."""
    return [sys.executable, str(ROOT / "tools" / f"{name}.py")]


def run(*command: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end: one of ours in this process, with one worker unless it says how many."""
    words = [str(word) for word in command]
    name = Path(words[1]).stem if len(words) > 1 and words[0] == sys.executable else ""
    if not name or Path(words[1]).parent not in (ROOT / "tools", ROOT / "launchers"):
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if name in WORKING and len(words) > 2 and "--workers" not in words:
        words += ["--workers", "1"]
    main = import_module(command_module(Path(words[1]))).main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.object(sys, "argv", words[1:]):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
