"""The page about runs: complete, self-contained, escaped, the numbers those of the files."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from helpers.report_fixtures import EACH, PEOPLE, add_result, make_run, metrics_line

from simfle.config.schema import ModelConfig, PretrainConfig
from simfle.errors import UserError
from simfle.eval.analysis.results import LANDMARKS
from simfle.report.load_runs import POINTS, read_runs, results_of
from simfle.report.report import Extras, ReportStage, write_report
from simfle.report.tables import confusions, tables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Parsed page: tags with their attributes, text, cells of rows, and unclosed tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)

    def row(self, first: str) -> list[str]:
        """The first row that begins so."""
        return next(row for row in self.rows if row and row[0].startswith(first))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    for seed in (0, 1):
        add_result(folder / "eval", "online-0123abcd", 0.8 + 0.1 * seed, seed=seed)
        add_result(folder / "eval", "random-resnet18-ab12", 0.4, seed=seed)
    add_result(folder / "eval", "online-0123abcd", 0.7, protocol="knn")
    return folder


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text()
    page = Page(text)
    page.close()
    assert page.open == []
    return text, page


def write(run: Path, **options: object) -> tuple[str, Page]:
    (path,) = write_report([run], **options)  # type: ignore[arg-type]
    return read(path)


def test_nothing_is_fetched_from_anywhere_and_no_face_is_shown(run: Path) -> None:
    text, page = write(run)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, value
    assert not page.all("iframe")
    assert not page.all("img")  # what training drew shows faces
    assert "This page contains no image of a face" in page.words()
    assert "@import" not in text
    assert "fetch(" not in text
    assert not re.search(r"url\((?!#)", text)


def test_anchors_lead_somewhere(run: Path) -> None:
    _, page = write(run)
    targets = {attributes.get("id") for _, attributes in page.tags}
    links = [link["href"] for link in page.all("a")]
    assert len(links) >= 4
    assert all(link and link[1:] in targets for link in links)


def test_charts_are_svg_that_scales_and_says_what_it_shows(run: Path) -> None:
    text, _ = write(run)
    charts = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]
    assert len(charts) == 9  # the comparison, five losses, learning rate, speed and waiting
    for chart in charts:
        assert "viewBox" in chart.attrib
        assert "width" not in chart.attrib
        assert chart.attrib["aria-label"]
    labels = [chart.attrib["aria-label"] for chart in charts]
    assert "similarity over 30 steps: run ends at 0.1333" in labels
    identifiers = re.findall(r'id="([^"]+)"', "".join(re.findall(r"<clipPath[^>]*>", text)))
    assert len(set(identifiers)) == len(identifiers)  # or one chart would be clipped by another's frame


def test_the_table_holds_the_results(run: Path) -> None:
    _, page = write(run)
    header, ours = page.row("backbone"), page.row("online")
    assert header[1:] == ["faces, linear probe balanced accuracy", "faces, kNN balanced accuracy"]
    low, high = tables(results_of(read_runs([run]))).rows[0].interval
    assert ours[1] == f"85.0 % {100 * low:.1f} % to {100 * high:.1f} %"
    assert ours[2].startswith("70.0 % ")
    assert page.row("random weights")[2] == "-"  # was not measured by kNN
    values = [cell.get("data-value") for cell in page.all("td")]
    assert "0.85" in {value[:6] for value in values if value}
    words = page.words()
    for expected in ("± 7.1 % (2)", "contempt (8)", "chance is 33.3 %", "intervals over people", "of 12 other people"):
        assert expected in words, expected
    assert "python launchers/evaluate.py 'shards=[my faces]'" in words
    assert words.count("launchers/evaluate.py 'shards") == 1
    assert f"simfle pretrain {run / 'config.yaml'}" in words
    assert "epochs: 7" in words


def test_images_are_said_where_people_are_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_result(run / "eval", "online-0123abcd", 0.8, people=False)
    words = write(run)[1].words()
    assert "intervals over images" in words
    assert "other people" not in words


def test_all_settings_are_told_with_whose_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_result(run / "eval", "online-0123abcd", 0.8)
    add_result(run / "eval", "random-0123abcd", 0.5, epochs=9)
    add_result(run / "eval", "online-0123abcd", 0.8, benchmark="others")
    words = write(run)[1].words()
    assert "Settings of faces, linear, onlinelinear: epochs: 7" in words
    assert "Settings of faces, linear, random weightslinear: epochs: 9" in words
    assert "Settings of others, linearlinear: epochs: 7" in words


def test_differences_are_tested_in_pairs(run: Path) -> None:
    _, page = write(run)
    header = page.rows.index(["first", "second", "where", "first - second", "95 % interval", "p"])
    first, second, where, difference, interval, p = page.rows[header + 1]
    assert (first, second, where, difference) == ("online", "random weights", "faces, linear probe", "45.0 %")
    low, high = (float(value.removesuffix(" %")) for value in interval.split(" to "))
    assert 0 < low < 45 < high
    assert float(p) < 0.05


def test_confusions_are_sums_over_seeds(run: Path) -> None:
    found = {matrix.title: matrix for matrix in confusions(tables(results_of(read_runs([run]))))}
    table = np.array(found["online, faces, linear probe"].table)
    assert table.sum() == 2 * PEOPLE * EACH
    assert table.trace() == round((0.8 + 0.9) * PEOPLE * EACH)
    assert found["online, faces, linear probe"].recall == pytest.approx(table.diagonal() / table.sum(1))


def test_metrics_where_less_is_better(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name, error in (("online-0123abcd", 0.05), ("random-resnet18-ab12", 0.09)):
        add_result(run / "eval", name, error, protocol="landmarks", kind=LANDMARKS)
    text, page = write(run)
    assert page.row("online")[1] == "0.050 0.050 to 0.050"
    (best,) = re.findall(r'<td data-value="([^"]+)" class="best"', text)
    assert float(best) == pytest.approx(0.05)


def test_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", PretrainConfig(model=ModelConfig(method="byol")))
    (path,) = write_report([run, other], results=[run / "eval"])  # named twice, shown once
    assert path == run.parent / "report.html"
    text, page = read(path)
    assert page.row("model.method") == ["model.method", "simfle", "byol"]
    assert [row[0] for row in page.rows if row[0].startswith("model.")] == ["model.method"]
    assert page.row("other")[1:] == ["byol", "resnet50", "30", "240", "256", "0", "125", "25.0 %"]
    assert page.row("run")[:2] == ["run", "method"]
    assert "run (simfle) ends at 0.1333; other (byol) ends at 0.1333" in text
    assert len([row for row in page.rows if row[:1] == ["online"] and len(row) == 3]) == 1


def with_measures(run: Path, **features: float) -> Path:
    """Add collapse metrics and probes to the metrics of a run."""
    monitor = {"knn": 0.42, "linear": 0.5, "random_knn": 0.25, "random_linear": 0.375}
    tables = {"features": {"rank": 20.0, "random_rank": 16.0} | features, "monitor": monitor}
    lines = [metrics_line(step) | tables for step in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_rank_and_probes_are_on_top_with_their_baselines(run: Path) -> None:
    text, page = write(with_measures(run))
    top = text[text.index('id="training"') : text.index('id="results"')]
    for title in ("total loss", "learning rate", "effective rank of the features"):
        assert f"<h3>{title}</h3>" in top
    for expected in (
        "effective rank of the features over 30 steps: run ends at 20; run, random weights ends at 16",
        "kNN accuracy, % over 240 images: run ends at 42; run, random weights ends at 25",
        "linear probe accuracy, % over 240 images: run ends at 50; run, random weights ends at 37.5",
    ):
        assert f'aria-label="{expected}"' in top
        assert text.count(expected) == 1
    facts = " ".join(page.words().split("Sections")[0].split())
    assert "online: linear probe, balanced accuracy 85.0 % random weights: 40.0 %" in facts
    assert "effective rank 20.0 random weights: 16.0" in facts
    assert "kNN accuracy during training 42.0 % random weights: 25.0 %" in facts
    assert facts.index("85.0 %") < facts.index("effective rank")
    assert "the features collapse" not in facts
    assert "monitor.probe_every" not in page.words().split("Commands to reproduce")[0]


def test_a_run_from_other_weights_is_compared_with_its_start(tmp_path: Path) -> None:
    run = with_measures(make_run(tmp_path / "run", PretrainConfig(model=ModelConfig(init="runs/first"))), rank=5.0)
    (run / "init.json").write_text('{"source": "runs/first", "loaded": 7, "wanted": 8}')
    text, page = write(run)
    assert "effective rank of the features over 30 steps: run ends at 5; run, at the start ends at 16" in text
    assert "kNN accuracy, % over 240 images: run ends at 42; run, random weights ends at 25" in text
    words = page.words()
    assert "run started from runs/first: 7 of 8 tensors loaded." in words
    assert "effective rank 5.0 at the start: 16.0" in " ".join(words.split())
    assert "run: the features collapse. They use far fewer dimensions than at the start." in words


def test_methods_are_compared_on_one_page(tmp_path: Path) -> None:
    runs = []
    for name, method, steps, skill in (("a", "simfle", 100, 0.6), ("b", "byol", 300, 0.8)):
        run = with_measures(make_run(tmp_path / name, PretrainConfig(model=ModelConfig(method=method))))
        origin = {"folder": name, "step": steps}
        add_result(run / "eval", f"{name}-online-0123abc{name}", skill, run=origin)
        add_result(run / "eval", "random-resnet18-64px-ab12", 0.4)
        runs.append(run)
    (path,) = write_report(runs)
    text, page = read(path)
    assert "a (simfle) ends at 20; a (simfle), random weights ends at 16; b (byol) ends at 20;" in text
    (seen,) = re.findall(r'aria-label="balanced accuracy against images seen: ([^"]*)"', text)
    assert sorted(seen.split("; ")) == ["a, trained: 0.6 after 25600 images", "b, trained: 0.8 after 76800 images"]
    trained = [row[0] for row in page.rows if row[0].endswith(", trained") and len(row) == 2]
    assert trained == ["a, trained", "b, trained"]
    assert page.rows.index(page.row("a, trained")) < page.rows.index(page.row("random weights"))


def test_names_of_backbones_stay_distinct(tmp_path: Path) -> None:
    for name in ("run-online-01234567", "run-target-01234568", "other-online-01234567", "other-online-01234568"):
        add_result(tmp_path, name, 0.5)
    add_result(tmp_path, "random-resnet18-64px-ab12", 0.5)
    add_result(tmp_path, "random-resnet50-64px-ab13", 0.5)
    assert tables(results_of([], [tmp_path]), 5).names == {
        "run-online-01234567": "run, trained",
        "run-target-01234568": "run, trained (EMA target)",
        "other-online-01234567": "other, trained (01234567)",
        "other-online-01234568": "other, trained (01234568)",
        "random-resnet18-64px-ab12": "random weights (resnet18-64px)",
        "random-resnet50-64px-ab13": "random weights (resnet50-64px)",
    }


def test_confusion_matrices_are_tables(run: Path) -> None:
    text, page = write(run)
    matrix = page.rows.index(["true \\ predicted", "anger", "joy", "fear"])
    cells = [row[1:] for row in page.rows[matrix + 1 : matrix + 4]]
    assert [row[0] for row in page.rows[matrix + 1 : matrix + 4]] == ["anger", "joy", "fear"]
    assert all(98 <= sum(map(int, row)) <= 102 for row in cells)
    assert 'class="high" style="--share:' in text


def test_colors_follow_the_theme_and_figures_can_be_enlarged(run: Path) -> None:
    text, page = write(with_measures(run))
    charts = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert not re.findall(r": (#[0-9a-f]{6})", charts)
    dark = text[text.index("@media (prefers-color-scheme: dark)") :]
    used = set(re.findall(r"var\((--\w+)\)", charts))
    assert len(used) >= 4
    assert all(f"{name}:" in dark[:900] for name in used)
    assert len([tag for tag in page.all("button") if tag.get("class") == "zoom"]) == len(re.findall("<svg", text))
    assert len(page.all("dialog")) == 1
    regions = [tag for tag in page.all("div") if tag.get("class") == "scroll"]
    assert regions
    assert all(tag["tabindex"] == "0" and tag["aria-label"] for tag in regions)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "run") for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&$x_1$"
    run = make_run(tmp_path / "run", PretrainConfig(model=ModelConfig(backbone=evil)))
    add_result(run / "eval", "random", 0.5, names=(evil, "joy"), benchmark="<b>bold</b>")
    _, page = write(run)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert page.text.count(evil) >= 3
    (text,) = write_report([run], formats=["markdown"])
    assert "<" not in text.read_text()


def test_extras_are_told(run: Path) -> None:
    sheet = run / "images" / "step-00000010.png"
    stage = ReportStage("shards", "draw faces", "out/shards", 12.3)
    done = ReportStage("export", "write", "out/export", None)
    extras = Extras("A title", "An opening.", [stage, done], ["python a b"], sheet, "All drawn.", "No labels.")
    for result in run.glob("eval/**/*.json"):
        result.unlink()
    _, page = write(run, out=run / "deep" / "page.html", extras=extras)
    told = ("A title", "An opening.", "draw faces", "12", "already complete", "python a b", "All drawn.", "No labels.")
    for expected in (*told, "This page contains images of faces"):
        assert expected in page.words(), expected
    (image,) = page.all("img")
    assert base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) == sheet.read_bytes()


def test_other_formats_hold_the_same_numbers(run: Path) -> None:
    written = write_report([run], formats=["html", "markdown", "csv", "json"])
    assert [path.suffix for path in written] == [".html", ".md", ".csv", ".json"]
    lines = list(csv.DictReader(io.StringIO(written[2].read_text())))
    assert [(line["backbone"], line["protocol"]) for line in lines] == [
        ("online", "linear"), ("online", "knn"), ("random weights", "linear"),
    ]  # fmt: skip
    assert float(lines[0]["score"]) == pytest.approx(0.85)
    content = json.loads(written[3].read_text())
    assert content["results"][0]["score"] == pytest.approx(0.85)
    assert content["runs"][0]["losses"] == metrics_line(30)["losses"]
    assert content["comparisons"][0]["difference"] == pytest.approx(0.45)
    text = written[1].read_text()
    assert "| online | faces | linear | balanced accuracy | 85.0 % |" in text
    assert "    python launchers/evaluate.py" in text


def test_no_name_is_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ('=HYPERLINK("http://x")', "+1", "-1", "@x"):
        add_result(run / "eval", name, 0.5, benchmark="=1+1")
    (written,) = write_report([run], formats=["csv"])
    lines = list(csv.DictReader(io.StringIO(written.read_text())))
    assert len(lines) == 4
    texts = [line[name] for line in lines for name in ("backbone", "id", "kind", "benchmark")]
    assert [text for text in texts if text.startswith(("=", "+", "-", "@"))] == []
    assert float(lines[0]["score"]) == pytest.approx(0.5)


def test_a_run_without_results_and_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "versions.json").unlink()
    _, page = write(run)
    assert "similarity" in page.text
    assert not page.all("table")


def test_a_line_cut_short_is_passed_over(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss')
    assert read_runs([run])[0].last["step"] == 30


def test_long_curves_are_averaged_down(run: Path) -> None:
    lines = "".join(json.dumps(metrics_line(step)) + "\n" for step in range(1, 4 * POINTS + 2))
    (run / "metrics.jsonl").write_text(lines)
    found = {curve.name: curve for curve in read_runs([run])[0].curves}["similarity"]
    assert len(found.values) <= POINTS
    assert found.steps[0] == 3
    assert found.values[0] == pytest.approx(np.mean([4 / step for step in range(1, 6)]))
    assert found.steps[-1] > 4 * POINTS - 2


def test_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is given"):
        write_report([])
    with pytest.raises(UserError, match="is not a run folder"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="format=pdf: unknown"):
        write_report([run], formats=["pdf"])
    with pytest.raises(UserError, match="is not a folder"):
        write_report([run], results=[tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is not a folder"):
        write_report([run], shards=[str(tmp_path / "no-shards")])
    (tmp_path / "page").mkdir()
    with pytest.raises(OSError, match="page"):  # which every command tells in a line
        write_report([run], tmp_path / "page")
    damaged = next(run.glob("eval/**/seed-0.json"))
    damaged.write_text("{")
    with pytest.raises(UserError, match=r"seed-0\.json is corrupt"):
        write_report([run])
    damaged.unlink()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no metrics yet"):
        write_report([run])
    for text in ("a: [", "a: 1", yaml.safe_dump({"model": {"method": "x"}})):
        (run / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml is corrupt"):
            write_report([run])
    assert not (run / "report.html").exists()


def test_command(run: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/report.py"), str(run)]
    done = subprocess.run([*tool, "--out", str(run / "page.html")], capture_output=True, text=True, check=True)
    assert done.stdout == f"report: {run / 'page.html'}\n"
    (run / "config.yaml").unlink()
    failed = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: report: ")
    assert failed.stderr.count("\n") == 1
