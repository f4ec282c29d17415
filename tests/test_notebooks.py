"""Every notebook runs in a clean kernel and prints its committed outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


NUMBER = re.compile(r"\d[\d,]*\.?\d*")
# Floating-point sums differ between processors, and so now and then does a sample; in the last two
# notebooks, a whole training run amplifies this. The tour counts single answers and asserts what
# matters.
TOLERANCE = {"4_language_models": 0.3, "5_tour": float("inf")}


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """The output of each code cell without warnings, and the number of figures it draws."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [o.text for o in cell.outputs if o.get("name") == "stdout"]
            figures = sum("image/png" in o.get("data", {}) for o in cell.outputs)
            found.append("".join(texts) + f"[{figures} figures]")
    return found


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def test_there_are_five():
    assert [path.name[0] for path in PATHS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", PATHS[3:], ids=lambda path: path.stem)
def test_one_import_of_the_package_is_enough(path):
    cells = nbformat.read(path, as_version=4).cells
    lines = [line for cell in cells for line in cell.source.splitlines()]
    imports = [line for line in lines if re.match(r"(from|import) .*(pmc_jax|convert)", line)]
    assert imports == ["import pmc_jax as pmc"]


PROGRESS = """
import time
from pmc_jax.runtime.progress import stage

with stage("training", 60) as shown:
    shown.say("compiling")
    for done in range(1, 61):
        time.sleep(0.01)
        shown.update(done, f"loss {done / 10}")
with stage("stopped early", 60, done=10) as shown:
    shown.update(11)
"""


def test_progress_is_one_output_for_each_stage(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    received = []

    class Client(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            received.append((msg["msg_type"], msg["content"].get("data", {}).get("text/plain")))
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRESS)])
    Client(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data", "display_data"]
    first, second = (re.sub(r"\x1b\[[\d;]*m", "", o["data"]["text/plain"]) for o in outputs)
    assert re.fullmatch(r"training ━+ 60/60 .* loss 6\.0\n", first)
    assert re.fullmatch(r"stopped early ━+[╸╺]━+ 11/60 .*\n", second)
    shown = [text for kind, text in received if kind == "update_display_data"]
    assert any(text.startswith("compiling\ntraining") for text in shown)
    assert 3 <= len(shown) <= 30  # redrawn as time passes, not for every unit of work


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_outputs_are_complete(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_clean_kernel_prints_what_is_committed(path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    committed = printed(notebook)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    client.execute()
    fresh = printed(notebook)
    assert [NUMBER.sub("#", text).split() for text in fresh] == [
        NUMBER.sub("#", text).split() for text in committed
    ]
    tolerance = TOLERANCE.get(path.stem, 0.05)
    for one, other in zip(fresh, committed, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=tolerance, abs=tolerance / 5)
