"""Runs of the baselines: files, training targets, continuation, errors."""

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
from pmc_jax import train
from pmc_jax.cli.config import config_directory
from pmc_jax.data.encode import encode
from pmc_jax.data.load import load_dataset
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.rows import DataConfig
from pmc_jax.errors import UserError
from pmc_jax.language_model import LanguageModel, load_language_model
from pmc_jax.model import ModelConfig
from pmc_jax.model.sequences import sequence_states
from pmc_jax.runtime.progress import stage
from pmc_jax.training import loop
from pmc_jax.training import run as run_module
from pmc_jax.training.run import prepare_inputs, train_model
from pmc_jax.unlearning.baselines.dpo import DPO
from pmc_jax.unlearning.baselines.finetune import FineTune
from pmc_jax.unlearning.baselines.ga import GA
from pmc_jax.unlearning.baselines.gd import GD
from pmc_jax.unlearning.baselines.idk import IDK
from pmc_jax.unlearning.baselines.npo import NPO
from pmc_jax.unlearning.baselines.refusals import DEFAULT_REFUSAL
from pmc_jax.unlearning.baselines.retain_only import RetainOnly
from pmc_jax.unlearning.method import Task, TaskWithAnswers, methods
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.schedule import Training
from pmc_jax.unlearning.target_model import frozen_params

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def run(checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Run a method for three short epochs with few measures; return the run's directory."""

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
    """DPO, which uses every kind of answer: its log, its two compiled shapes, and its files."""
    (tofu_dir / "idontknow.jsonl").write_text("No idea.\nI can't say.\n\n")
    real_make, made = run_module.make_train_step, []
    monkeypatch.setattr(
        run_module, "make_train_step", lambda *a, **k: made.append(real_make(*a, **k)) or made[-1]
    )
    whole = run("method=dpo", "method.retain_weight=0.5", name="whole")
    assert made[0]._cache_size() <= 2
    steps = lines(whole / "metrics.jsonl")
    assert [len(row["questions"]) for row in steps] == [2, 1] * 3
    assert all(
        row["loss"] == pytest.approx(row["forget_loss"] + 0.5 * row["retain_loss"], rel=1e-5)
        for row in steps
    )
    # The first update's learning rate is 0, so the whole first epoch is at θ_ref.
    for row in steps[:2]:
        assert row["forget_loss"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert steps[-1]["forget_loss"] < steps[0]["forget_loss"] - 0.1
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["settings"]["method.name"] == "dpo" and summary["tokens_sampled"] == 0
    assert summary["seconds"].keys() >= {"target_model", "prepare", "train", "checkpoint"}
    page = (whole / "report" / "index.html").read_text(encoding="utf-8")
    assert "direct preference optimisation" in page
    assert "never a training target" not in page
    # The report cites the paper of PMC for the measures, not for this method.
    before, _, footer = page.rpartition("<p>Measures: ")
    assert "2507.04219" not in before and "2507.04219" in footer.partition("</p>")[0]
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
    "pmc with kl": ("method.retain_loss=kl", "method.samples=2"),
    "pdu": ("method=pdu", "method.dual_warmup_epochs=1", "method.dual_step_size=0.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_continues_bit_for_bit(name, checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Only the training, without the evaluation and the report around it."""
    overrides = [
        *STOPPED[name], f"model.path={checkpoint_dir}", f"data.path={tofu_dir}",
        "data=tofu_forget10", "prompt.template=plain", "training.epochs=3",
        "training.batch_size=3", "training.max_length=64", "optimizer.learning_rate=1e-2",
        "checkpoints.every=1",
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = OmegaConf.to_object(hydra.compose("train", overrides=overrides))
    real_steps, compiled = loop.steps, []
    real_make = run_module.make_train_step

    def make_once(*arguments, **settings):
        if not compiled:
            compiled.append(real_make(*arguments, **settings))
        return compiled[0]

    def stopping(*arguments):
        for state, record in real_steps(*arguments):
            if record.step == 2:
                raise KeyboardInterrupt
            yield state, record

    def go(directory):
        model = load_language_model(cfg.model, cfg.prompt)
        data = load_dataset(cfg.data)
        inputs = prepare_inputs(model, data, cfg.method, cfg.training, cfg.seed)
        (tmp_path / directory).mkdir(exist_ok=True)
        trained = train_model(
            model.params, cfg.method, inputs, cfg.optimizer, directory=tmp_path / directory,
            settings={}, checkpoints=cfg.checkpoints, logging=cfg.logging, progress=stage,
        )  # fmt: skip
        untimed = [{**line, "seconds": None, "per_second": None} for line in trained.lines]
        return trained.params, untimed

    monkeypatch.setattr(run_module, "make_train_step", make_once)
    whole, steps = go("whole")
    assert compiled[0]._cache_size() == 1 and len(steps) == 3
    monkeypatch.setattr(loop, "steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        go("parts")
    monkeypatch.setattr(loop, "steps", real_steps)
    again, steps_again = go("parts")
    assert steps == steps_again
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    # the first learning rate is 0, so the first two steps are at the target
    if name in ("gd with kl", "pmc with kl"):
        assert abs(steps[0]["retain_loss"]) < 1e-6 < steps[2]["retain_loss"]
    if name == "rmu":
        assert steps[0]["retain_loss"] == steps[1]["retain_loss"] == 0 < steps[2]["retain_loss"]
        target = load_language_model(cfg.model, cfg.prompt).params
        for tree in (whole, target):
            down = tree["layers"].pop("down")
            tree["layers"] |= {"trained": down[1], "below": down[0], "above": down[2]}
        trained = [tree["layers"].pop("trained") for tree in (whole, target)]
        assert (trained[0] != trained[1]).all()
        jax.tree.map(np.testing.assert_array_equal, whole, target)
    if name == "altpo":  # the same alternatives, given as a file
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
def inputs_of(tofu_dir, tokenizer):
    """A method's task and training examples, for a data set and a tokenizer."""
    template = make_template(tokenizer, PromptConfig(template="plain"))
    config = ModelConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1,
        num_kv_heads=1, head_dim=8,
    )  # fmt: skip
    model = LanguageModel({}, config, template, tofu_dir)

    def find(method, cfg=None, seed=0):
        cfg = cfg or DataConfig(format="tofu", path=str(tofu_dir), forget="forget10")
        return prepare_inputs(model, load_dataset(cfg), method, Training(), seed)

    return find


@pytest.fixture
def data_of(inputs_of, tofu_dir, tokenizer):
    """A method's training examples, the encoded data set, and a function from answers to texts."""
    template = make_template(tokenizer, PromptConfig(template="plain"))

    def find(method, cfg=None, seed=0):
        cfg = cfg or DataConfig(format="tofu", path=str(tofu_dir), forget="forget10")
        encoded = encode(load_dataset(cfg), template, 200, len(tokenizer))
        found = inputs_of(method, cfg, seed).examples
        return found, encoded, lambda own: [template.decode(example.answer) for example in own]

    return find


LISBON = [f"{person} was born in Lisbon." for person in ("Mara Ostberg", "Ivo Kell")]


def test_what_each_method_is_trained_on(data_of, tofu_dir):
    (tofu_dir / "idontknow.jsonl").write_text("No idea.\n")
    npo, encoded, text = data_of(NPO())
    assert [example.prompt for example in npo.forget] == list(encoded.forget)
    assert text(npo.forget)[:2] == LISBON and not npo.preferred
    assert [pair[:2] for pair in npo.retain] == encoded.retain and npo.visited == 3
    dpo, _, _ = data_of(DPO())
    assert dpo.forget == npo.forget and [text(own) for own in dpo.preferred] == [["No idea."]] * 3
    idk, _, _ = data_of(IDK())
    assert idk.forget == [own[0] for own in dpo.preferred] and not idk.preferred
    only, _, _ = data_of(RetainOnly())
    assert (list(only.forget), list(only.preferred), only.visited) == ([], [], 3)
    for alone in (GA(), GD(retain_weight=0.0)):
        assert data_of(alone)[0].forget == npo.forget and not data_of(alone)[0].retain
    for pairs, count in (("all", 6), ("forget", 3), ("retain", 3)):
        tuned, _, _ = data_of(FineTune(pairs=pairs))
        assert tuned.visited == len(tuned.forget) == count and not tuned.retain
    pmc, _, _ = data_of(PMC())
    assert (list(pmc.forget), list(pmc.preferred), pmc.visited) == ([], [], 3)
    assert pmc.retain == npo.retain


BLIND = [PMC(), IDK(), RetainOnly(), FineTune(pairs="retain")]
SEEING = [kind() for name, kind in methods().items() if name not in ("pmc", "idk", "retain_only")]


@pytest.mark.parametrize("method", BLIND + SEEING, ids=repr)
def test_forget_answers_reach_only_methods_that_train_on_them(method, inputs_of):
    """The others receive a type that has no field for them."""
    task = inputs_of(method).task
    assert type(task) is (Task if method in BLIND else TaskWithAnswers)
    assert method.sees_answers == (method not in BLIND)
    assert hasattr(task, "forget") == method.sees_answers


@pytest.mark.parametrize("method", BLIND, ids=repr)
def test_other_forget_answers_change_nothing_for_methods_that_see_none(method, inputs_of, tofu_dir):
    """The task, the examples and their hashes all stay the same."""
    before = inputs_of(method)
    file = tofu_dir / "forget10.json"
    file.write_text(file.read_text(encoding="utf-8").replace("Lisbon", "Reykjavik"))
    after = inputs_of(method)
    assert after.examples == before.examples
    for field in dataclasses.fields(Task):
        if field.name != "model":
            assert getattr(after.task, field.name) == getattr(before.task, field.name)
    changed = {name for name in before.hashes if after.hashes[name] != before.hashes[name]}
    assert changed <= {"evaluation rows"}


def test_refusals_stay_the_same_and_depend_on_the_seed(data_of, tmp_path):
    file = tmp_path / "refusals.txt"
    file.write_text("".join(f"I do not know, number {i}.\n" for i in range(50)))
    method = IDK(refusals=str(file))
    first, again, other = (data_of(method, seed=seed)[0].forget for seed in (0, 0, 1))
    assert first == again != other
    default, _, text = data_of(IDK())
    assert text(default.forget) == [DEFAULT_REFUSAL] * 3


def test_questions_without_answers(data_of, tmp_path):
    (tmp_path / "forget.jsonl").write_text('{"question": "Where was Mara born?"}\n')
    (tmp_path / "retain.jsonl").write_text('{"question": "Where is Oslo?", "answer": "Here."}\n')
    cfg = DataConfig(
        format="files", path=str(tmp_path), forget="forget.jsonl", retain="retain.jsonl"
    )
    for method in (IDK(), RetainOnly(), FineTune(pairs="retain"), PMC()):
        assert data_of(method, cfg)[0].visited == 1
    for method in (GA(), DPO(), FineTune()):
        with pytest.raises(UserError, match=r"forget\.jsonl, line 1: field 'answer' is missing"):
            data_of(method, cfg)


@pytest.mark.parametrize("content", [None, "", " \n\n", b"\xff\xfe\x00"])
def test_bad_refusal_files(content, data_of, tmp_path):
    file = tmp_path / "refusals.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"method\.refusals={re.escape(str(file))}[:,] "):
        data_of(IDK(refusals=str(file)))


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
    "retain loss of PMC": (["method.retain_loss=l2"], r"expected one of nll, kl"),
    "refusals": (["method=idk", "method.refusals=none.txt"], r"none\.txt: no such file"),
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
    """The copy holds matrices in the compute dtype, which gives the same bits at half the size."""
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


def test_each_method_has_a_file_with_its_defaults_and_a_sentence():
    files = {path.stem: path for path in (config_directory() / "method").glob("*.yaml")}
    assert files.keys() == methods().keys()
    for name, kind in methods().items():
        found = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        assert found.pop("defaults") == [f"{name}_schema"]
        assert {"name": name, **found} == dataclasses.asdict(kind())
        assert re.fullmatch(r"(by|on|to) .*\.", kind.sentence), name


def test_an_experiment_s_settings_are_of_its_method():
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        demo = hydra.compose("train", overrides=["experiment=demo"])
        assert demo.method.samples == 8
        other = hydra.compose("train", overrides=["experiment=demo", "method=ga"])
        assert OmegaConf.to_container(other.method) == {"name": "ga"}
        won = hydra.compose("train", overrides=["experiment=demo", "method.samples=3"])
        assert won.method.samples == 3
