"""Names and words of others reach no terminal, log or page with what these would obey."""

import ast
import http.server
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_runner import run, tool
from helpers.report_fixtures import add_result, make_run
from PIL import Image
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from shards.errors import UserError
from shards.format.manifest import FORMAT, Manifest, write_manifest
from shards.format.samples import StoredSample, write_shard
from shards.io import urls
from shards.printable import one_line, printable
from simfle.commands.app import echo
from simfle.commands.logs import show_logs
from simfle.eval.analysis.summary import summarize
from simfle.eval.analysis.summary_table import text as shown
from simfle.runtime import logs
from simfle.runtime.console import Console

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Set the title, clear the screen, the same in one byte, go to the line's start, turn the text round.
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202eevil\u2066\x7f"
SAFE = r"\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202eevil\u2066\x7f"
UNSAFE = set(EVIL) - set("]0;owned[2Jevil")


def safe(text: str) -> bool:
    """Whether nothing of EVIL is left in a text, and it was in there."""
    return not UNSAFE & set(text) and r"\x1b[2J" in text


@pytest.fixture(autouse=True)
def warnings_as_before() -> Iterator[None]:
    before = warnings.formatwarning
    yield
    warnings.formatwarning = before


def test_what_is_escaped() -> None:
    assert printable(EVIL) == SAFE
    assert printable(SAFE) == SAFE
    kept = "Größe\t表情 שלום 👩‍👩‍👧 é\n" + "".join(map(chr, range(32, 127)))
    assert printable(kept) == kept
    assert one_line("a\nerror: b") == r"a\nerror: b"
    assert str(UserError(f"shards: {EVIL}")) == f"shards: {SAFE}"


def hostile(folder: Path, name: str) -> Path:
    """Shards whose corpus, terms, labels, keys and groups are hostile."""
    folder.mkdir()
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "JPEG")
    key = f"{EVIL}{name}"
    known = {"key": EVIL, "source": EVIL, "label": EVIL, "group": EVIL, "split": "train", "width": 32, "height": 32}
    sample = StoredSample(key, {"jpg": image.getvalue(), "cls": b"0", "json": json.dumps(known).encode()})
    info = write_shard(folder / "train-000000.tar", "train", [sample])
    (folder / "rejected.jsonl").write_text("")
    write_manifest(folder, Manifest(FORMAT, f"[/x]{EVIL}", EVIL, (f"[bold]{EVIL}",), 1, {}, (info,), {}))
    return folder


def test_commands_on_shards(tmp_path: Path) -> None:
    one, two = hostile(tmp_path / f"one{EVIL}", ""), hostile(tmp_path / "two", "")
    commands = {
        "inspect": [*tool("inspect_shards"), one],
        "verify": [*tool("verify_shards"), one],
        "merge": [*tool("merge_shards"), one, two, tmp_path / "out"],
        "merged": [*tool("merge_shards"), one, two, tmp_path / f"out{EVIL}", "--on-collision", "suffix"],
        "subset": [*tool("subset_shards"), one, tmp_path / f"part{EVIL}", "--fraction", 1],
        "no split": [*tool("subset_shards"), two, tmp_path / "x", "--fraction", 1, "--split", EVIL],
        "duplicates": [*tool("find_duplicates"), one],
        "remove": [*tool("remove_samples"), one, "--person", EVIL],
        "absent": [*tool("verify_shards"), tmp_path / EVIL],
    }
    for name, command in commands.items():
        done = run(*command)
        assert safe(done.stdout + done.stderr), name
        assert "Traceback" not in done.stderr


def test_builds_from_names_of_others(tmp_path: Path) -> None:
    for number, label in enumerate((f"a{EVIL.replace('/', '')}", "b")):
        (tmp_path / "faces" / label).mkdir(parents=True)
        Image.effect_noise((40, 40), 90 + number).save(tmp_path / "faces" / label / f"{number}{EVIL}.png")
        (tmp_path / "faces" / label / f"bad{EVIL}.png").write_bytes(b"no image")
    done = run(*tool("build_shards"), "folder", tmp_path / "faces", tmp_path / "out", "--class-folders")
    assert done.returncode == 0
    assert not UNSAFE & set(done.stdout + done.stderr)
    assert r"a\x1b]0;owned\x07\x1b[2j" in done.stdout  # a label is in small letters


def test_runs_on_a_terminal(tmp_path: Path) -> None:
    """A real one: its own colors and lines come through, what names of folders hold does not."""
    make_run(tmp_path / f"run{EVIL}")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launchers" / "runs.py"), str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"},
    )
    os.close(theirs)
    seen = b""
    with os.fdopen(ours, "rb", buffering=0) as output:
        try:
            while part := output.read(4096):
                seen += part
        except OSError:  # the other side has closed
            pass
    assert process.wait() == 0, seen
    assert b"\x1b[1m" in seen  # rich's own
    assert b"\\x1b]0;owned" in seen
    for evil in (b"\x1b]", b"\x1b[2J", b"\x07", "\u202e".encode(), "\x9b".encode()):
        assert evil not in seen


def test_consoles() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=200, color_system="standard")
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL, "bold"))
    console.print(table, EVIL, f"[bold]{EVIL}[/bold]")
    with Progress(console=console) as progress:
        progress.add_task(EVIL, total=1)
    found = written.getvalue()
    assert "\x1b[1m" in found
    assert not any(evil in found for evil in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b2J"))
    rows = [line for line in found.splitlines() if "│" in line or "┃" in line]
    assert {len(Text.from_ansi(line).plain) for line in rows} == {len(SAFE) + 4}  # borders stay in line


@pytest.mark.parametrize("name", ["simfle.x", "shards.x", "elsewhere"])
def test_logs(name: str) -> None:
    said = io.StringIO()
    with redirect_stderr(said):
        handler = logs.plain_handler()
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        logger.warning("%s: %s", EVIL, OSError(EVIL))
    finally:
        logger.removeHandler(handler)
    assert said.getvalue() == f"{SAFE}: {SAFE}\n"


def test_every_log_of_a_command_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "simfle", "shards"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    show_logs()
    logs.log_to_stderr()
    handlers = [handler for name in ("", "simfle", "shards") for handler in logging.getLogger(name).handlers]
    assert len(handlers) == 3
    assert all(isinstance(handler.formatter, logs.Plain) for handler in handlers)


def test_lines_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    logs.say(EVIL)
    echo(EVIL)
    echo(EVIL, err=True)
    logs.plain_warnings()
    logs.plain_warnings()
    assert safe(warnings.formatwarning(EVIL, UserWarning, f"/a/{EVIL}.py", 1))
    out, err = capsys.readouterr()
    assert (out, err) == (f"{SAFE}\n", f"{SAFE}\n" * 2)


class Hostile(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        words = re.sub("[\r\u202e\u2066]", "", EVIL)  # a status line is one line of Latin-1
        self.send_response(403 if "403" in self.path else 500, words)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing to log."""


def test_status_lines_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for place in ("403", "500"):
            done = run(*tool("verify_shards"), f"http://127.0.0.1:{server.server_port}/{place}")
            assert done.returncode == 1
            assert not UNSAFE & set(done.stderr)  # the words of a server are not shown at all
            assert place in done.stderr
    finally:
        server.shutdown()
        server.server_close()


def test_summaries_and_pages(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    name = "[/x]\x1b[2J\u202e"
    results = [add_result(folder / "eval", f"backbone{number}", 0.5, names=(name, "b", "c")) for number in (1, 2)]
    assert results
    text = shown(summarize(results, [], {}))
    assert not UNSAFE & set(text)
    done = run(*tool("report"), folder, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert not UNSAFE & set(page)
    assert r"\x1b[2J\u202e" in page


ALLOWED = {"simfle/runtime/logs.py", "simfle/runtime/console.py", "simfle/commands/app.py"}
# Its version; lines of a process that has escaped them.
SAID = {
    "simfle/commands/main.py": "typer.echo",
    "simfle/api/local_launcher.py": "sys.stderr.write",
    "simfle/train/watchdog.py": "sys.stderr.write",  # escaped before, and written by a thread that may be left behind
}


def bare(file: Path) -> Iterator[str]:
    """Calls that write to a terminal without escapes, and formats of logs."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            yield from (f"{node.module}.{name.name}" for name in node.names if name.name == "Console")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("typer.echo", "click.echo", "typer.secho"):
            yield ast.unparse(node)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "rich.print", "sys.stderr.write", "sys.stdout.write", "logging.basicConfig"):
                yield name
            if name.endswith("StreamHandler") or name == "logging.Formatter":
                yield name


def test_nothing_is_printed_past_the_escapes() -> None:
    found: list[Any] = []
    for file in [*sorted((ROOT / "shards").rglob("*.py")), *sorted((ROOT / "simfle").rglob("*.py"))]:
        name = str(file.relative_to(ROOT))
        if name not in ALLOWED:
            found += [(name, what) for what in bare(file) if SAID.get(name) != what]
    assert found == []
