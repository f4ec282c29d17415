"""Runs of the methods that PMC is compared with: files, targets, continuation, errors."""

import dataclasses
import json
import math
import re
from collections import Counter

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from test_train import call, lines

from convert.load import load_checkpoint
from pmc_jax import method_steps, train
from pmc_jax.cli.config import config_directory
from pmc_jax.data.encode import encode
from pmc_jax.data.load import load_dataset
from pmc_jax.data.prompts import PromptConfig, make_template
from pmc_jax.data.rows import DataConfig
from pmc_jax.errors import UserError
from pmc_jax.reporting.page import TRAINED
from pmc_jax.training.objectives import frozen_params
from pmc_jax.training.step import sequence_states
from pmc_jax.training.targets import DEFAULT_REFUSAL, method_data
from pmc_jax.training_inputs import load_inputs
from pmc_jax.unlearning.config import (
    METHODS,
    DPOConfig,
    FineTuneConfig,
    GAConfig,
    GDConfig,
    IDKConfig,
    NPOConfig,
    PMCConfig,
    RetainOnlyConfig,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def run(checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Run a method for three short epochs, measuring little; returns the run's directory."""

    def go(*arguments, name="tiny"):
        call(
            train, "experiment=tofu_llama3_2_3b", f"model.path={checkpoint_dir}",
            f"data.path={tofu_dir}", "prompt.template=plain", "prompt.system=null",
            "model.dtype=float32", "model.remat=none", f"runs_dir={tmp_path / 'runs'}",
            f"name={name}", "training.epochs=3", "training.batch_size=2",
            "training.accumulation=1", "training.max_length=64", "optimizer.learning_rate=1e-3",
            "evaluation.max_new_tokens=4", "evaluation.attack_samples=0", "data.retain_rows=2",
            "checkpoints.every=2", *arguments, monkeypatch=monkeypatch,
        )  # fmt: skip
        return tmp_path / "runs" / name

    return go


@pytest.mark.slow
def test_a_run_with_references_and_refusals(run, tofu_dir, monkeypatch):
    """DPO, which has every kind of rows: the log, two compiled shapes, and the files."""
    (tofu_dir / "idontknow.jsonl").write_text("No idea.\nI can't say.\n\n")
    real_make, made = method_steps.make_objective_step, []
    monkeypatch.setattr(
        method_steps, "make_objective_step", lambda *a: made.append(real_make(*a)) or made[-1]
    )
    whole = run("method=dpo", "method.retain_weight=0.5", name="whole")
    assert made[0]._cache_size() <= 2
    steps = lines(whole / "metrics.jsonl")
    assert [len(row["questions"]) for row in steps] == [2, 1] * 3
    assert all(
        row["loss"] == pytest.approx(row["forget_loss"] + 0.5 * row["retain_loss"], rel=1e-5)
        for row in steps
    )
    # The first update's learning rate is 0: the whole first epoch is at θ_ref.
    for row in steps[:2]:
        assert row["forget_loss"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert steps[-1]["forget_loss"] < steps[0]["forget_loss"] - 0.1
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["settings"]["method.name"] == "dpo" and summary["tokens_sampled"] == 0
    assert summary["seconds"].keys() >= {"references", "batch", "train", "checkpoint"}
    page = (whole / "report" / "index.html").read_text(encoding="utf-8")
    assert "direct preference optimisation" in page
    assert "never a training target" not in page and "2507.04219" not in page
    assert {"model", "report", "checkpoints", "samples.jsonl", "config.yaml"} <= {
        path.name for path in whole.iterdir()
    }


STOPPED = {
    "dpo": ("method=dpo",),
    "altpo": ("method=altpo", "method.samples=4", "method.kept=2", "method.max_new_tokens=8"),
    "ceu": ("method=ceu",),
    "undial": ("method=undial",),
    "rmu": (
        "method=rmu",
        "method.layer=1",
        "method.trained_layers=1",
        "method.retain_weight=2",
        "optimizer.weight_decay=0.5",
        "optimizer.max_grad_norm=1",
    ),
    "gd with kl": ("method=gd", "method.retain_loss=kl"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_continues_bit_for_bit(name, checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """The training alone, without what is measured and written around it."""
    overrides = [
        *STOPPED[name], f"model.path={checkpoint_dir}", f"data.path={tofu_dir}",
        "data=tofu_forget10", "prompt.template=plain", "training.epochs=3",
        "training.batch_size=3", "training.max_length=64", "optimizer.learning_rate=1e-2",
        "checkpoints.every=1",
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = OmegaConf.to_object(hydra.compose("train", overrides=overrides))
    real_steps, compiled = method_steps.baseline_steps, []
    real_make = method_steps.make_objective_step

    def make_once(*arguments):
        if not compiled:
            compiled.append(real_make(*arguments))
        return compiled[0]

    def stopping(*arguments):
        for state, record in real_steps(*arguments):
            if record.step == 2:
                raise KeyboardInterrupt
            yield state, record

    def go(directory):
        inputs, params = load_inputs(cfg)
        trained, steps, _ = train.train_stage(cfg, inputs, params, tmp_path / directory)
        return trained, [{**step, "seconds": None, "per_second": None} for step in steps]

    monkeypatch.setattr(method_steps, "make_objective_step", make_once)
    whole, steps = go("whole")
    assert compiled[0]._cache_size() == 1 and len(steps) == 3
    monkeypatch.setattr(method_steps, "baseline_steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        go("parts")
    monkeypatch.setattr(method_steps, "baseline_steps", real_steps)
    again, steps_again = go("parts")
    assert steps == steps_again
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    if name == "gd with kl":  # the first step's learning rate is 0, so its two begin at the target
        assert abs(steps[0]["retain_loss"]) < 1e-6 < steps[2]["retain_loss"]
    if name == "rmu":
        assert steps[0]["retain_loss"] == steps[1]["retain_loss"] == 0 < steps[2]["retain_loss"]
        _, target = load_inputs(cfg)
        for tree in (whole, target):
            down = tree["layers"].pop("down")
            tree["layers"] |= {"trained": down[1], "below": down[0], "above": down[2]}
        trained = [tree["layers"].pop("trained") for tree in (whole, target)]
        assert (trained[0] != trained[1]).all()
        jax.tree.map(np.testing.assert_array_equal, whole, target)
    if name == "altpo":  # what was sampled, given as a file
        file = tmp_path / "whole" / "alternatives.jsonl"
        method = dataclasses.replace(cfg.method, alternatives=str(file))
        cfg = dataclasses.replace(cfg, method=method)
        from_file, steps_from_file = go("file")
        assert steps == steps_from_file
        jax.tree.map(np.testing.assert_array_equal, whole, from_file)


@pytest.mark.slow
def test_fine_tuning_visits_every_pair_and_learns(run):
    directory = run("method=finetune", "training.epochs=6")
    steps = lines(directory / "metrics.jsonl")
    visits = Counter(i for row in steps for i in row["questions"])
    assert visits == dict.fromkeys(range(6), 6)
    losses = [row["loss"] for row in steps]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert all(row["retain_loss"] is None for row in steps)


@pytest.fixture
def data_of(tofu_dir, tokenizer):
    """`method_data` on a data set and a tokenizer."""
    template = make_template(tokenizer, PromptConfig(template="plain"))

    def find(method, cfg=None, seed=0):
        cfg = cfg or DataConfig(format="tofu", path=str(tofu_dir), forget="forget10")
        encoded = encode(load_dataset(cfg), template, 200, len(tokenizer))
        found = method_data(method, cfg, encoded, template, len(tokenizer), seed)
        return found, encoded, lambda pairs: [template.decode(answer) for _, answer in pairs]

    return find


LISBON = [f"{person} was born in Lisbon." for person in ("Mara Ostberg", "Ivo Kell")]


def test_what_each_method_is_trained_on(data_of, tofu_dir):
    (tofu_dir / "idontknow.jsonl").write_text("No idea.\n")
    npo, encoded, text = data_of(NPOConfig())
    assert [prompt for prompt, _ in npo.answers] == list(encoded.forget)
    assert text(npo.answers)[:2] == LISBON and not npo.preferred
    assert npo.retain == encoded.retain and npo.visited == 3
    dpo, _, _ = data_of(DPOConfig())
    assert dpo.answers == npo.answers and [text(own) for own in dpo.preferred] == [["No idea."]] * 3
    idk, _, _ = data_of(IDKConfig())
    assert idk.answers == [own[0] for own in dpo.preferred] and not idk.preferred
    only, _, _ = data_of(RetainOnlyConfig())
    assert (only.answers, only.preferred, only.visited) == ([], [], 3)
    for alone in (GAConfig(), GDConfig(retain_weight=0.0)):
        assert data_of(alone)[0].answers == npo.answers and not data_of(alone)[0].retain
    for pairs, count in (("all", 6), ("forget", 3), ("retain", 3)):
        tuned, _, _ = data_of(FineTuneConfig(pairs=pairs))
        assert tuned.visited == len(tuned.answers) == count and not tuned.retain
    with pytest.raises(TypeError):
        data_of(PMCConfig())


def test_refusals_stay_the_same_and_depend_on_the_seed(data_of, tmp_path):
    file = tmp_path / "refusals.txt"
    file.write_text("".join(f"I do not know, number {i}.\n" for i in range(50)))
    method = IDKConfig(refusals=str(file))
    first, again, other = (data_of(method, seed=seed)[0].answers for seed in (0, 0, 1))
    assert first == again != other
    default, _, text = data_of(IDKConfig())
    assert text(default.answers) == [DEFAULT_REFUSAL] * 3


def test_questions_without_answers(data_of, tmp_path):
    (tmp_path / "forget.jsonl").write_text('{"question": "Where was Mara born?"}\n')
    (tmp_path / "retain.jsonl").write_text('{"question": "Where is Oslo?", "answer": "Here."}\n')
    cfg = DataConfig(
        format="jsonl", path=str(tmp_path), forget="forget.jsonl", retain="retain.jsonl"
    )
    for method in (IDKConfig(), RetainOnlyConfig(), FineTuneConfig(pairs="retain")):
        assert data_of(method, cfg)[0].visited == 1
    for method in (GAConfig(), DPOConfig(), FineTuneConfig()):
        with pytest.raises(UserError, match=r"forget\.jsonl, line 1: field 'answer' is missing"):
            data_of(method, cfg)


@pytest.mark.parametrize("content", [None, "", " \n\n", b"\xff\xfe\x00"])
def test_refusals_that_are_none(content, data_of, tmp_path):
    file = tmp_path / "refusals.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"method\.refusals={re.escape(str(file))}: "):
        data_of(IDKConfig(refusals=str(file)))


MISTAKES = {
    "unknown method": (["method=nop"], r"method=nop: expected one of .*npo"),
    "another method's key": (
        ["method=npo", "method.samples=3"],
        r"method\.samples is a key of method=pmc, altpo, not of method=npo",
    ),
    "misspelt key": (["method=npo", "method.betta=3"], r"unknown .*method\.betta;.*method\.beta"),
    "name": (["method=npo", "method.name=dpo"], r"method\.name=dpo: choose a method by method="),
    "beta": (["method=npo", "method.beta=0"], r"method\.beta=0.*: expected more than 0"),
    "pairs": (["method=finetune", "method.pairs=some"], r"expected one of all, retain, forget"),
    "alternatives": (
        ["method=altpo", "method.alternatives=none.jsonl"],
        r"none\.jsonl: no such file",
    ),
    "layer": (["method=rmu", "method.layer=3"], r"method\.layer=3: expected less than 3"),
    "activations": (["method=gd", "method.retain_loss=activations"], r"expected one of nll, kl$"),
    "retain loss": (["method=gd", "method.retain_loss=l2"], r"expected one of nll, kl"),
    "retain loss of PMC": (["method.retain_loss=kl"], r"retain_loss is a key of method=gd, "),
    "refusals": (["method=idk", "method.refusals=none.txt"], r"none\.txt: cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line_and_write_nothing(name, run, tmp_path, capsys):
    arguments, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert re.match("error: ", error) and re.search(message, error)
    assert not (tmp_path / "runs").exists()


def test_a_frozen_copy_is_its_own_and_computes_the_same(checkpoint_dir):
    """Matrices in the dtype that products are computed in: the same bits at half the size."""
    found = load_checkpoint(checkpoint_dir)
    states = jax.jit(sequence_states, static_argnames=("cfg", "dtype", "remat"))
    tokens, segments = jnp.arange(12).reshape(2, 6), jnp.ones((2, 6), jnp.int32)
    for dtype in ("float32", "bfloat16"):
        frozen = frozen_params(found.params, found.cfg, dtype)
        outputs = [
            states(params, tokens, segments, cfg=found.cfg, dtype=dtype, remat="none")
            for params in (found.params, frozen)
        ]
        np.testing.assert_array_equal(*outputs)
        assert frozen["layers"]["up"].dtype == dtype
        places = [
            {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
            for params in (found.params, frozen)
        ]
        assert not places[0] & places[1]


def test_each_method_has_a_file_with_its_defaults():
    assert TRAINED.keys() == METHODS.keys()
    files = {path.stem: path for path in (config_directory() / "method").glob("*.yaml")}
    assert files.keys() == METHODS.keys()
    for name, kind in METHODS.items():
        found = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        assert found.pop("defaults") == [f"{name}_schema"]
        assert {"name": name, **found} == dataclasses.asdict(kind())


def test_an_experiment_s_settings_are_of_its_method():
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        demo = hydra.compose("train", overrides=["experiment=demo"])
        assert demo.method.samples == 8
        other = hydra.compose("train", overrides=["experiment=demo", "method=ga"])
        assert OmegaConf.to_container(other.method) == {"name": "ga"}
        won = hydra.compose("train", overrides=["experiment=demo", "method.samples=3"])
        assert won.method.samples == 3
