"""The evaluation page in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from written import FIGURES, write_evaluation

from pmc_jax.reporting import write_evaluation_report


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


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
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
