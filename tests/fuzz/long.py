"""The long run: `python -m fuzz.long [--cases N] [--out FILE] [READER ...]`, a process for each reader, and a table.

`--table FILE` prints what is in a FILE of --out, as docs/reliability.md has it.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz.all_readers import READERS
from fuzz.reader import fuzz


def one(name: str, cases: int, number: int) -> None:
    """Fuzz one reader in this process, and print what came of it as JSON in the last line."""
    logging.disable()
    reader = next(reader for reader in READERS if reader.name == name)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        counts = fuzz(reader, cases, Path(folder), number)
        print(json.dumps({"cases": counts.cases, "read": counts.read, "seconds": time.process_time() - began}))


def table(figures: dict[str, dict[str, float]]) -> str:
    """Markdown, in the order of the readers; those that were not run are named below."""
    lines = ["| reader | cases | accepted | CPU s | failures |", "|---|---|---|---|---|"]
    for name in (reader.name for reader in READERS if reader.name in figures):
        cases, read, seconds = (figures[name].get(key, 0) for key in ("cases", "read", "seconds"))
        lines.append(f"| {name} | {cases:,.0f} | {read:,.0f} | {seconds:.0f} | {figures[name]['failures']:.0f} |")
    absent = [reader.name for reader in READERS if reader.name not in figures]
    return "\n".join([*lines, *([f"\nNot run: {', '.join(absent)}."] if absent else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help="names; none: all")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file that figures are added to")
    parser.add_argument("--one", help="(one reader in this process)")
    parser.add_argument("--table", type=Path, help="print such a file as Markdown, and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    if options.one:
        one(options.one, options.cases, options.seed)
        return
    unknown = set(options.readers) - {reader.name for reader in READERS}
    if unknown:
        sys.exit(f"no reader {sorted(unknown)}; there are: {', '.join(reader.name for reader in READERS)}")
    figures = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    failed = False
    print(f"{'reader':24}{'cases':>8}{'accepted':>10}{'CPU s':>8}  result", flush=True)
    for reader in READERS:
        if options.readers and reader.name not in options.readers:
            continue
        words = ["--one", reader.name, "--cases", str(options.cases), "--seed", str(options.seed)]
        command = [sys.executable, "-B", "-W", "ignore", "-m", "fuzz.long", *words]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        bad = done.returncode != 0
        failed |= bad
        found = {"failures": 1} if bad else json.loads(done.stdout.splitlines()[-1]) | {"failures": 0}
        figures[reader.name] = found
        shown = [found.get(name, 0) for name in ("cases", "read", "seconds")]
        print(f"{reader.name:24}{shown[0]:>8}{shown[1]:>10}{shown[2]:>8.1f}  {'FAILED' if bad else 'ok'}", flush=True)
        if bad:
            print(done.stderr[-6000:], f"exit code {done.returncode}", sep="\n", flush=True)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
