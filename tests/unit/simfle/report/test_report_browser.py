"""The page in a real browser: no error, every picture shows, headings sort, nothing overflows a phone's screen."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.report_fixtures import add_result, make_run

from simfle.report.report import Extras, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESK = 390, 1440  # CSS pixels
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgb(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (e) => rgb(getComputedStyle(e).backgroundColor)[3] ? getComputedStyle(e).backgroundColor
    : e.parentElement ? ground(e.parentElement) : 'white';
  const found = {};
  for (const e of document.querySelectorAll('body *:not(svg *, script, dialog *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const name = [e.tagName, e.textContent.trim().slice(0, 30), Object.keys(found).length].join(' ');
    found[name] = (a + 0.05) / (b + 0.05);
  }
  return found;
})()"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")


class Browser:
    """Chromium without a window, spoken to over two pipes in the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        to_us, from_it = os.pipe()
        to_it, from_us = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        )
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec "$0" {flags} --user-data-dir="$1" 3<&{to_it} 4>&{from_it}'
        arguments = ["bash", "-c", command, str(CHROMIUM), str(profile)]
        self.process = subprocess.Popen(arguments, pass_fds=(to_it, from_it), stderr=subprocess.DEVNULL)
        os.close(to_it)
        os.close(from_it)
        self.writer, self.reader = os.fdopen(from_us, "wb", 0), os.fdopen(to_us, "rb", 0)
        self.session, self.number, self.rest = "", 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []

    def open(self, page: Path) -> None:
        """Load a page and wait until it is loaded, its errors and requests noted from the first."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=page.as_uri())
        while self.message().get("method") != "Page.loadEventFired":
            pass

    def width(self, pixels: int) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=800, deviceScaleFactor=1, mobile=pixels == PHONE
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        call = {"id": self.number, "method": method, "params": params}
        call |= {"sessionId": self.session} if self.session else {}
        self.writer.write(json.dumps(call).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def message(self) -> dict[str, Any]:
        """Return the next message; keep messages about errors and requests."""
        while b"\0" not in self.rest:
            part = self.reader.read(65536)
            assert part, "Chromium has ended"
            self.rest += part
        text, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with long names, many benchmarks, a picture, a long command."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [make_run(folder / name) for name in ("a-run-with-a-rather-long-name-of-many-words", "b")]
    for benchmark in ("affectnet7", "rafdb", "ferplus"):
        for name, skill in (("online-0123abcd", 0.8), ("target-0123abce", 0.9), ("random-resnet18-ab12", 0.4)):
            add_result(runs[0] / "eval", name, skill, benchmark=benchmark)
    sample = runs[0] / "images" / "step-00000010.png"
    extras = Extras(sample=sample, sample_caption="Faces.", commands=["python " + "x" * 300])
    (path,) = write_report(runs, folder / "report.html", extras=extras)
    return path


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.open(page)
        yield browser
    finally:
        browser.close()


def test_loads_without_an_error_or_a_request(browser: Browser, page: Path) -> None:
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]


def test_every_picture_shows(browser: Browser) -> None:
    sizes = browser.run("[...document.images].map(image => [image.naturalWidth, image.width])")
    assert sizes
    assert all(natural > 0 and shown > 0 for natural, shown in sizes)
    charts = browser.run("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)")
    assert len(charts) == 11  # three comparisons, five losses, learning rate, speed and waiting
    assert browser.run("document.querySelectorAll('figure table.confusion').length") == 9
    assert all(height > 80 for height in charts)
    captions = browser.run(
        "[...document.querySelectorAll('figure')].map(f => f.querySelector('figcaption')?.textContent.trim())"
    )
    assert all(captions)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_overflows(browser: Browser, width: int) -> None:
    browser.width(width)
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
        && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.run(outside) == []
    assert browser.run("getComputedStyle(document.querySelector('p')).fontSize") == "16px"  # readable without zoom


def test_a_figure_is_enlarged_by_a_click_and_by_a_key(browser: Browser) -> None:
    browser.width(PHONE)
    opened = "document.querySelector('dialog').open"
    assert not browser.run(opened)
    browser.run("document.querySelector('button.zoom').click()")
    assert browser.run(opened)
    assert browser.run("document.querySelectorAll('dialog svg').length") == 1
    assert browser.run("document.querySelector('dialog').getBoundingClientRect().right") <= PHONE
    browser.run("document.activeElement.click()")  # the close button
    assert not browser.run(opened)
    assert browser.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, theme: str) -> None:
    """WCAG 2, level AA: 4.5 for text."""
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    ratios = browser.run(CONTRAST)
    assert len(ratios) > 20
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda item: item[1])[:5]


def test_headings_sort(browser: Browser) -> None:
    names = "[...document.querySelectorAll('table.scores tbody tr')].map(row => row.cells[0].innerText)"
    assert browser.run(names) == ["online", "target", "random weights"]
    press = "document.querySelectorAll('table.scores th button')[1].click()"
    browser.run(press)
    assert browser.run(names) == ["target", "online", "random weights"]
    assert browser.run("document.querySelectorAll('table.scores th')[1].getAttribute('aria-sort')") == "descending"
    browser.run(press)
    assert browser.run(names) == ["random weights", "online", "target"]
    browser.run("document.querySelectorAll('table.scores th button')[0].click()")  # by name
    assert browser.run(names) == ["target", "random weights", "online"]
    assert browser.run("document.querySelectorAll('table.scores th[aria-sort]').length") == 1
    assert browser.errors == []
