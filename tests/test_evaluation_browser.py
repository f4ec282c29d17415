"""The evaluation page in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_but
from matplotlib.image import imread
from test_statement import verdict, write_run
from written import FIGURES, write_evaluation

from pmc_jax.data.files import read_json, read_objects, write_json, write_json_lines
from pmc_jax.reporting import write_evaluation_report, write_report
from pmc_jax.reporting.pareto import write_comparison


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    directory = write_evaluation(tmp_path_factory.mktemp("evaluations") / "trial")
    write_evaluation_report(directory)
    return directory


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
MEASURING = """<!doctype html><iframe id="page" width="{width}" height="4000" src="{page}"></iframe>
<script>
const box = element => element && [...["x", "y", "width", "height"].map(
  side => element.getBoundingClientRect()[side]), element.scrollWidth];
window.onload = () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const figures = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
  document.title = JSON.stringify({{
    width: root.scrollWidth, room: root.clientWidth,
    table: box(page.querySelector(".scroll")), frame: box(document.getElementById("page")),
    figures: figures.map(box => [box.width, box.height]),
    words: Math.min(...[...page.querySelectorAll("p, li, td, small, dd")].map(
      element => parseFloat(page.defaultView.getComputedStyle(element).fontSize))),
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browser(page: Path, width: int, scheme: str, tmp_path: Path) -> dict:
    """What `MEASURING` finds in a page, and its screenshot as pixel values from 0 to 1."""
    measuring, picture = tmp_path / "measure.html", tmp_path / "page.png"
    measuring.write_text(MEASURING.format(page=page.as_uri(), width=width))
    preferred = {"dark": 0, "light": 1}[scheme]
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        f"--blink-settings=preferredColorScheme={preferred}", "--virtual-time-budget=5000",
        "--dump-dom", f"--screenshot={picture}", f"--window-size={width + 100},2000",
        measuring.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(re.search(r"<title>(.*?)</title>", shown)[1]) | {"pixels": imread(picture)}


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_whole(evaluation, tmp_path, width, scheme):
    """No element is wider than the page, figures have their size, and colours follow the scheme."""
    found = browser(evaluation / "report/index.html", width, scheme, tmp_path)
    assert found["width"] <= found["room"]
    assert len(found["figures"]) == FIGURES
    assert all(w > 250 and h > 120 for w, h in found["figures"])
    assert found["words"] >= 12
    colours = {"light": "rgb(253, 252, 249)", "dark": "rgb(21, 24, 28)"}
    assert found["ground"] == colours[scheme]


WIDTHS = """<!doctype html>{frames}<script>
window.onload = () => {{ document.title = JSON.stringify([...document.querySelectorAll("iframe")]
  .map(frame => frame.contentDocument.documentElement)
  .map(root => [root.scrollWidth, root.clientWidth])); }};
</script>"""


@pytest.fixture(scope="module")
def pages(evaluation, tmp_path_factory) -> list[Path]:
    """A page of each kind: evaluation, its statement, run, its statement, comparison, and one of
    few runs."""
    directory = tmp_path_factory.mktemp("runs")
    found = verdict("gone", "partly", "still there")
    write_evaluation_report(
        write_evaluation(directory / "e", parts=("quality",), verdict=found, date="2026-11-30")
    )
    write_report(write_run(directory / "r", found))
    for name in ("a", "b", "c"):
        settings = {"method.name": "npo", "method.a_setting_with_a_long_name": name * 40}
        measures = {"utility": 90.0, "unlearn_quality": 80.0}
        run = write_run(directory / name, None, settings=settings, after=measures)
        (run / "config.yaml").write_text("method: {name: npo}\n")
    few = [directory / "a", directory / "b"]
    write_comparison([*few, directory / "c"], directory / "comparison")
    write_comparison(few, directory / "few")
    return [
        evaluation / "report/index.html",
        *(directory / kind / "report" / name for kind in "er"
          for name in ("index.html", "statement.html")),
        directory / "comparison/index.html", directory / "few/index.html",
    ]  # fmt: skip


ENDLESS = "x" * 116


def endless(value):
    """A JSON value in which every text that a person or a model has written is one long word."""
    if isinstance(value, list):
        return [endless(item) for item in value]
    if not isinstance(value, dict):
        return value
    written = {"question", "text", "before", "after", "answer", "secret", "path", "name", "prompt"}
    return {
        key: ENDLESS if key in written and isinstance(item, str) else endless(item)
        for key, item in value.items()
    }


@pytest.fixture(scope="module")
def endless_pages(tmp_path_factory) -> list[Path]:
    """The same pages with a word of 116 characters in place of every question, answer and name."""
    directory = tmp_path_factory.mktemp("endless")
    found = verdict("gone", "partly", "still there")
    settings = {
        "method.name": ENDLESS, "method.reward": f"my.module:{ENDLESS}", f"method.{ENDLESS}": 3,
        "method.text": ENDLESS, "model.path": f"/models/{ENDLESS}",
    }  # fmt: skip
    warnings = [f"the question {ENDLESS} is odd"]
    evaluation = write_evaluation(
        directory / "e", (ENDLESS[:60] + "1", ENDLESS[:60] + "2"), verdict=found,
        date="2026-11-30", warnings=warnings, name=ENDLESS,
    )  # fmt: skip
    runs = [
        write_run(directory / name, found, settings=settings | {"method.a": name},
                  after={"utility": 90.0, "unlearn_quality": 80.0}, name=ENDLESS, warnings=warnings,
                  untuned=ENDLESS)
        for name in ("r", "s", "t")
    ]  # fmt: skip
    for path in evaluation.glob("models/*/*.json"):
        write_json(path, endless(read_json(path)))
    for run in runs:
        write_json_lines(run / "samples.jsonl", endless(read_objects(run / "samples.jsonl")))
        (run / "config.yaml").write_text(f"method: {{name: {ENDLESS}}}\n")
    write_evaluation_report(evaluation)
    write_report(runs[0])
    write_comparison(runs, directory / "comparison")
    return [
        *(directory / kind / "report" / name for kind in "er"
          for name in ("index.html", "statement.html")),
        directory / "comparison/index.html",
    ]  # fmt: skip


@needs_browser
@pytest.mark.parametrize(
    ("kind", "number"), slow_but([("pages", 7)], [("pages", 7), ("endless_pages", 5)])
)
def test_no_page_scrolls_sideways_on_a_phone(kind, number, request, tmp_path):
    pages = request.getfixturevalue(kind)
    frames = "".join(
        f'<iframe width="390" height="800" src="{p.as_uri()}"></iframe>' for p in pages
    )
    measuring = tmp_path / "measure.html"
    measuring.write_text(WIDTHS.format(frames=frames))
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        "--virtual-time-budget=5000", "--dump-dom", measuring.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    widths = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert len(widths) == len(pages) == number
    assert not [page for page, (width, room) in zip(pages, widths, strict=True) if width > room]


def sheets(page: Path, tmp_path: Path) -> int:
    """On how many sheets of A4 a page is printed."""
    printed = tmp_path / "printed.pdf"
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={printed}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return len(re.findall(rb"/Type /Page\b", printed.read_bytes()))


@needs_browser
def test_a_statement_is_printed_on_two_sheets_at_most(pages, tmp_path):
    found = [sheets(page, tmp_path) for page in pages if page.name == "statement.html"]
    assert len(found) == 2 and all(1 <= number <= 2 for number in found)


@needs_browser
def test_a_whole_suite_of_three_models_is_printed_on_thirteen_sheets_at_most(evaluation, tmp_path):
    assert 1 <= sheets(evaluation / "report/index.html", tmp_path) <= 13


@needs_browser
@pytest.mark.parametrize("scheme", slow_but(["light"], ["light", "dark"]))
def test_a_table_that_scrolls_is_shaded_where_more_lies(tmp_path, scheme):
    models = ("pmc", "target", "npo", "simnpo", "retain_only")
    directory = write_evaluation(tmp_path / "many", models, parts=("quality",))
    page = write_evaluation_report(directory)

    def edge(width: int) -> tuple[bool, float]:
        """Whether the table scrolls, and the difference in brightness between its edge and the
        ground."""
        found = browser(page, width, scheme, tmp_path)
        (x, y, breadth, height, whole), (left, top, *_) = found["table"], found["frame"]
        right, first = round(left + x + breadth), round(top + y)
        rows = found["pixels"][first : first + round(height), right - 3 : right - 1, :3]
        ground = found["pixels"][first, round(left) + 3, :3]
        return whole > breadth, float(np.median(abs(rows - ground).mean(axis=(1, 2))))

    assert edge(1200) == (False, 0.0)
    scrolls, shade = edge(390)
    assert scrolls and shade > 0.1
