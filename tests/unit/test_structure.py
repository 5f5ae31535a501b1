"""The architecture, held: imports run one way, fronts stay thin, commands answer --help without heavy libraries."""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each package or module may import beside itself. Commands may import all; no package imports commands.
ALLOWED = {
    "shards.printable": set(),
    "shards.redact": set(),
    "shards.errors": {"shards.printable", "shards.redact"},
    "shards.entry": set(),
    "shards.rules": {"shards.entry", "shards.errors"},
    "shards.io": {"shards.errors", "shards.printable", "shards.redact"},
    "shards.imaging": {"shards.entry", "shards.errors", "shards.io"},
    "shards.format": {"shards.entry", "shards.errors", "shards.io", "shards.redact", "shards.rules"},
    "shards.dedup": {"shards.errors", "shards.format", "shards.imaging", "shards.io"},
    "shards.reading": {"shards.errors", "shards.format", "shards.imaging", "shards.io", "shards.redact"},
    "shards.build": {
        *("shards.entry", "shards.errors", "shards.rules", "shards.redact"),
        *("shards.dedup", "shards.format", "shards.imaging", "shards.io"),
    },
    "shards.edit": {
        *("shards.entry", "shards.errors", "shards.rules", "shards.redact"),
        *("shards.dedup", "shards.format", "shards.imaging", "shards.io", "shards.reading"),
    },
    "shards.sources": {
        *("shards.entry", "shards.errors", "shards.rules", "shards.printable", "shards.redact"),
        *("shards.format", "shards.imaging", "shards.io"),
    },
    "simfle.version": set(),
    "simfle.errors": {"shards.errors"},
    "simfle.batch": set(),
    "simfle.config": {"simfle.errors", "shards.io"},
    "simfle.optim": {"simfle.config"},
    "simfle.runtime": {
        "simfle.config",
        "simfle.errors",
        "simfle.optim",
        "shards.io",
        "shards.printable",
        "shards.redact",
    },
    "simfle.models": {"simfle.batch", "simfle.config", "simfle.errors", "shards.errors"},
    "simfle.data": {"simfle.batch", "simfle.config", "simfle.errors", "simfle.runtime", "shards"},
    "simfle.eval": {
        *("simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.data", "simfle.models", "simfle.optim", "shards"),
    },
    "simfle.train": {
        *("simfle.batch", "simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.data", "simfle.eval", "simfle.models", "simfle.optim", "shards"),
    },
    "simfle.export": {"simfle.config", "simfle.errors", "simfle.eval", "simfle.runtime", "shards"},
    "simfle.plan": {
        *("simfle.batch", "simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.models", "simfle.optim", "shards.io"),
    },
    "simfle.bench": {
        *("simfle.batch", "simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.data", "simfle.models", "simfle.optim", "simfle.plan", "simfle.train", "shards"),
    },
    "simfle.slurm": {
        *("simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.data", "simfle.eval", "simfle.train", "shards"),
    },
    "simfle.doctor": {"simfle.config", "simfle.errors", "simfle.runtime", "simfle.data", "simfle.slurm", "shards"},
    # What a page shows is computed by the packages below it.
    "simfle.report": {
        *("simfle.batch", "simfle.config", "simfle.errors", "simfle.runtime", "simfle.train.telemetry"),
        *("simfle.data", "simfle.eval", "simfle.export", "simfle.models", "shards"),
    },
    "simfle.api": {
        *("simfle.config", "simfle.errors", "simfle.runtime"),
        *("simfle.data", "simfle.eval", "simfle.export", "simfle.train", "shards"),
    },
}
# Class names that two packages may share: each is a term of the field on its own.
SHARED_CLASSES: set[str] = set()
MAX_FUNCTION_LINES = 60  # with the signature and the docstring
FILES = [
    file
    for file in sorted([*ROOT.glob("shards/**/*.py"), *ROOT.glob("simfle/**/*.py")])
    if "configs" not in file.relative_to(ROOT).parts
]
COMMANDS = sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("launchers/*.py")])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def imports(file: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it, except for type checkers alone."""
    found = set()
    tree = ast.parse(file.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                found.add(full if is_module(full) else node.module)
    return {name for name in found if name.split(".")[0] in ("simfle", "shards", "tools", "launchers")}


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_run_one_way(file: Path) -> None:
    name = module_name(file)
    if name in ("simfle", "shards", "simfle.__main__") or within(name, {"simfle.commands"}):
        assert not any(within(other, {"tools", "launchers"}) for other in imports(file))
        return
    package = ".".join(name.split(".")[:2])
    assert package in ALLOWED, f"{name} is in no package of the architecture"
    allowed = ALLOWED[package] | {package}
    wrong = [other for other in imports(file) if not within(other, allowed) and other not in ("shards", "simfle")]
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


def test_no_circle_between_siblings() -> None:
    """At each level: packages and modules in one folder import each other one way."""
    graph: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in FILES:
        own = module_name(file).split(".")
        for name in imports(file):
            other = name.split(".")
            common = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), 0)
            if 0 < common < min(len(own), len(other)):
                graph[".".join(own[:common])][own[common]].add(other[common])
    circles = {parent: circle for parent, edges in graph.items() if (circle := find_circle(edges))}
    assert not circles


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """The nodes that are left when all without imports are taken away, again and again."""
    left = {node: set(others) for node, others in edges.items()}
    while free := [node for node, others in left.items() if not others & left.keys()]:
        for node in free:
            del left[node]
    return sorted(left)


def test_no_module_shadows_the_standard_library() -> None:
    names = [module_name(file) for file in FILES if file.name != "__init__.py"]
    assert not [name for name in names if name.rpartition(".")[2] in sys.stdlib_module_names]


def test_no_class_name_stands_for_two_things() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module_name(file))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_CLASSES} == {}


@pytest.mark.parametrize("file", [*FILES, *COMMANDS], ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_are_short(file: Path) -> None:
    lengths = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert [(name, lines) for name, lines in lengths if lines > MAX_FUNCTION_LINES] == []


def test_names_of_test_files_differ() -> None:
    """pytest imports them by their names alone."""
    names = Counter(file.name for file in ROOT.glob("tests/**/test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


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
