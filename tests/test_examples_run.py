"""The scripts in `examples/` run, and what they print is correct."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from smollm2 import HUB

import pmc_jax as pmc
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.language_model import ModelSource, load_language_model

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture
def example(monkeypatch):
    """Import a script by its path in `examples/`, as Python does when it runs the script."""

    def load(name: str) -> ModuleType:
        path = EXAMPLES / name
        monkeypatch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("my_unlearning", None)


def test_unlearn_your_model(example, capsys):
    script = example("unlearn_your_model.py")
    result = script.main()
    printed = capsys.readouterr().out
    model, world = pmc.load_model(), pmc.Dataset.bundled()
    known = world.evaluation["forget"][: script.QUESTIONS]
    for row in known:
        ((before,), (after,)) = (m.generate([row.question])[0] for m in (model, result.model))
        assert f"{row.question}\n  before: {before}\n  after:  {after}\n" in printed
        assert row.secret in before and row.secret not in after
    lines = printed.splitlines()
    rows = {line[:16].strip(): line.split()[-2:] for line in lines}
    before, after = map(float, rows["Unlearn quality"])
    assert before < 20 and after > 80
    before, after = map(float, rows["Utility"])
    assert after > 0.9 * before
    assert max(map(len, lines)) <= 100


def test_the_page_that_forgets_one_author(tiny_model, tmp_path, monkeypatch):
    """Its Python block, in a copy of the repository's examples, with a smaller model."""
    text = (EXAMPLES.parent / "docs" / "one-author.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pmc, "load_model", {HUB: tiny_model}.get)
    names: dict[str, Any] = {"__name__": "block"}
    exec(compile(block, "one-author.md", "exec"), names)
    assert len(names["result"].steps) == 12
    saved = ModelSource(str(tmp_path / "unlearned"))
    again = load_language_model(saved, PromptConfig()).generate(names["questions"])
    assert again == names["result"].model.generate(names["questions"])


def test_compare_models(example, capsys):
    found = example("compare_models.py").main()
    printed = capsys.readouterr().out.splitlines()
    assert list(found) == ["PMC", "NPO"]
    for line, (name, evaluation) in zip(printed[-2:], found.items(), strict=True):
        measures = evaluation.measures
        assert measures["unlearn_quality"] > 60 and measures["utility"] > 60
        assert line.startswith(name)
        assert f"unlearn quality {measures['unlearn_quality']:5.1f}" in line
        assert f"utility {measures['utility']:5.1f}" in line


def test_own_method_and_reward(example, capsys):
    script = example("extending/run.py")
    found = script.main()
    printed = capsys.readouterr().out
    model, world = pmc.load_model(), pmc.Dataset.bundled()
    row = world.evaluation["forget"][0]
    ((before,),) = model.generate([row.question], max_new_tokens=20)
    assert f"{row.question}\n  before: {before}\n" in printed and row.secret in before
    assert list(found) == ["own method", "own reward"]
    kept = [row.question for row in world.evaluation["retain"][:20]]
    right = model.generate(kept)
    for name, result in found.items():
        ((after,),) = result.model.generate([row.question], max_new_tokens=20)
        assert f"  {name}: {after}\n" in printed and row.secret not in after
        same = [a == b for a, b in zip(right, result.model.generate(kept), strict=True)]
        assert sum(same) >= 12
