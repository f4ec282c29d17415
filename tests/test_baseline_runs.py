"""Whole runs of the methods that PMC is compared with: files, continuation, clear errors."""

import json

import numpy as np
import pytest
from test_train import assert_same_run, lines, run, weights  # noqa: F401

from pmc_jax import train
from pmc_jax.config import CHOICES, METHODS
from pmc_jax.training.targets import DEFAULT_REFUSAL

PMC_KEYS = ("method.samples", "method.max_new_tokens")


@pytest.fixture
def run_method(run, monkeypatch):  # noqa: F811
    """Run another method with the settings of `run` that it has."""

    def go(method: str, *arguments: str, **options):
        real = train.main

        def without_keys_of_pmc() -> None:
            import sys

            sys.argv[1:] = [a for a in sys.argv[1:] if a.partition("=")[0] not in PMC_KEYS]
            real()

        with monkeypatch.context() as patch:
            patch.setattr(train, "main", without_keys_of_pmc)
            return run(f"method={method}", *arguments, **options)

    return go


def test_a_stopped_run_of_dpo_continues_bit_for_bit(run_method, monkeypatch):
    whole = run_method("dpo", name="whole")
    real = train.baseline_steps

    def stopping(*arguments):
        for state, record in real(*arguments):
            if record.step == 3:
                raise RuntimeError("the machine is gone")
            yield state, record

    with monkeypatch.context() as patch:
        patch.setattr(train, "baseline_steps", stopping)
        with pytest.raises(SystemExit):
            run_method("dpo", name="parts")
    parts = run_method("dpo", name="parts")
    assert_same_run(whole, parts)
    steps = lines(whole / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(6))
    # The first update has learning rate 0, so the first two steps are at the target model,
    # where every log σ of DPO is log σ(0).
    assert steps[0]["forget_loss"] == pytest.approx(2 / 0.1 * np.log(2), rel=1e-4)
    assert steps[0]["loss"] == pytest.approx(
        steps[0]["forget_loss"] + steps[0]["retain_loss"], rel=1e-5
    )
    summary = json.loads((whole / "summary.json").read_text())
    assert {"unlearn_quality", "utility"} <= summary["after"].keys()
    assert summary["settings"]["method.name"] == "dpo" and summary["steps"] == 6
    assert summary["seconds"].keys() >= {"originals", "batch", "train", "checkpoint"}
    assert (whole / "report" / "index.html").is_file() and (whole / "samples.jsonl").is_file()


def test_fine_tuning_learns_all_pairs_and_takes_no_method_keys(run_method, capsys):
    before = None
    directory = run_method("finetune", "training.epochs=12", "optimizer.learning_rate=1e-2")
    steps = lines(directory / "metrics.jsonl")
    assert {i for row in steps[:3] for i in row["questions"]} == set(range(6))
    before = np.mean([row["loss"] for row in steps[:3]])
    assert np.mean([row["loss"] for row in steps[-3:]]) < 0.5 * before
    assert all(row["retain_loss"] is None or row["loss"] == row["forget_loss"] for row in steps)
    assert weights(directory)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_method("finetune", "method.beta=1", name="wrong")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "method.beta is a key of method=" in error and "not of method=finetune" in error


def test_a_forget_file_without_answers_is_an_error_only_where_they_are_needed(
    run_method, tofu_dir, capsys
):
    path = tofu_dir / "forget10.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    for name in ("forget10_perturbed", "world_facts", "real_authors"):
        (tofu_dir / f"{name}.json").unlink()
    files = ["data.format=jsonl", "data.path=null", f"data.forget={path}",
             f"data.retain={tofu_dir / 'retain90.json'}", "training.epochs=1"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        run_method("npo", *files)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "answer" in error
    directory = run_method("idk", *files)
    assert len(lines(directory / "metrics.jsonl")) == 2


def test_every_method_has_a_config_file_and_a_default_refusal():
    from pmc_jax.config import config_directory

    assert {path.stem for path in (config_directory() / "method").glob("*.yaml")} == set(METHODS)
    assert DEFAULT_REFUSAL and "all" in CHOICES["method.pairs"]
