"""Evaluation in memory: the command's measures, comparison with another model, clear errors."""

import dataclasses
import json
import sys

import jax
import pytest

from pmc_jax.cli.evaluate import main
from pmc_jax.data import DataConfig, load_dataset
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.context import RobustnessConfig
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.run import evaluate

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = EvaluationConfig(max_new_tokens=8, attack_samples=3)


@pytest.fixture
def dataset(tofu_dir):
    return load_dataset(DataConfig(path=str(tofu_dir), retain_rows=4))


def test_it_measures_what_the_command_measures(
    tiny_model, dataset, tofu_dir, tmp_path, monkeypatch
):
    command = [
        "evaluate", f"model.path={tiny_model.directory}", f"data.path={tofu_dir}", "suite=quick",
        f"evaluations_dir={tmp_path}", "name=one", "data.retain_rows=4", "max_length=64",
        "evaluation.max_new_tokens=8", "evaluation.attack_samples=3",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    main()
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    (name,) = summary["models"]
    found = evaluate(tiny_model, dataset, evaluation=SETTINGS, max_length=64)
    assert found.measures == summary["measures"][name] and found.before is None
    assert found.lacking == summary["lacking"]
    for part in SUITES["quick"]:
        stored = json.loads((tmp_path / f"one/models/{name}/{part}.json").read_text())
        times = dict.fromkeys(("seconds", "compiling"))
        ours = json.loads(json.dumps(found.parts["model"][part]))
        assert {**ours, **times} == {**stored, **times}


@pytest.mark.slow
def test_a_model_beside_the_one_before(tiny_model, dataset):
    """Float32 weights as after training are accepted, and the table has both models' measures."""
    quiet = tiny_model.with_params(jax.tree.map(lambda leaf: 0.9 * leaf, tiny_model.params))
    robustness = RobustnessConfig(examples=1, steps=[1], batch_size=1, bits=[4])
    found = evaluate(
        quiet, dataset, before=tiny_model, suite="attacks", evaluation=SETTINGS,
        robustness=robustness, max_length=64,
    )  # fmt: skip
    assert found.measures.keys() == found.before.keys() and found.measures != found.before
    assert {"quantisation_4_worst", "relearning_forget_greedy"} <= found.measures.keys()
    verdict, table = found.table().split("\n\n", 1)
    assert verdict.startswith("VERDICT: ")
    heading, *lines = table.splitlines()
    assert heading.split() == ["in", "percent", "before", "after"]
    assert max(map(len, lines)) <= 80
    utility = next(line for line in lines if line.startswith("Utility"))
    values = [f"{each['utility']:.1f}" for each in (found.before, found.measures)]
    assert utility.split()[1:] == values
    assert json.loads(json.dumps(found.to_dict()))["measures"]["after"] == found.measures


def test_mistakes_name_what_was_expected(tiny_model, dataset):
    with pytest.raises(UserError, match="suite=all: expected one of quick, paper"):
        evaluate(tiny_model, dataset, suite="all")
    with pytest.raises(UserError, match=r"robustness\.steps"):
        evaluate(tiny_model, dataset, robustness=RobustnessConfig(steps=[]))
    with pytest.raises(UserError, match="the prompt has"):
        evaluate(tiny_model, dataset, max_length=12)
    with pytest.raises(UserError, match=r"nowhere\.json: no such file; expected OpenUnlearning's"):
        evaluate(tiny_model, dataset, retain_log="nowhere.json")
    decoding = dataclasses.replace(SETTINGS, attack_samples=0)
    found = evaluate(tiny_model, dataset, evaluation=decoding, max_length=64)
    assert found.lacking["sampling"] == "evaluation.attack_samples is 0"
