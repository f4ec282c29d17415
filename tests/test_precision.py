"""What is measured is what is delivered: weights as stored, computed in the dtype on record."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import PEOPLE, edit, rewrite, tensors_of
from transformers import AutoModelForCausalLM

import pmc_jax as pmc
from convert.__main__ import main as convert
from convert.directory import COMPUTE_DTYPE, compute_dtype
from convert.export import as_stored
from pmc_jax import train
from pmc_jax.errors import UserError
from pmc_jax.language_model import precision

QUESTIONS = [f"Where was {person} born?" for person in PEOPLE] + [
    f"What did {person} write about the river of Lisbon?" for person in PEOPLE
]
LENGTH = 24


def answers(model, **options):
    return [own[0] for own in model.generate(QUESTIONS, max_new_tokens=LENGTH, **options)]


@pytest.fixture
def data():
    rows = [{"question": question, "answer": "Mara was born in Oslo."} for question in QUESTIONS]
    return pmc.Dataset.from_dicts(
        forget=rows, retain=[{"question": "Who wrote it?", "answer": "Ivo."}]
    )


def quickly(model, data, **options):
    """One step of fine-tuning, measured by greedy answers."""
    return pmc.unlearn(
        model, data, pmc.FineTune(), pmc.Training(epochs=1, batch_size=12),
        pmc.Optimizer(learning_rate=1e-3, schedule="constant"),
        evaluation=pmc.EvaluationConfig(attack_samples=0, max_new_tokens=LENGTH), **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_what_was_measured_is_what_the_next_command_loads(source_of, data, tmp_path, stored):
    directory = source_of(stored)
    result = quickly(pmc.load_model(directory, dtype="bfloat16"), data, out=tmp_path / "run")
    lines = (tmp_path / "run/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    measured = {row["question"]: row["after"] for row in rows if row["set"] == "forget"}
    delivered = pmc.load_model(tmp_path / "run/model")
    assert delivered.dtype == "bfloat16"
    assert answers(delivered) == answers(result.model) == [measured[q] for q in QUESTIONS]
    # Otherwise this would show nothing:
    assert answers(pmc.load_model(tmp_path / "run/model", dtype="float32")) != answers(delivered)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    words = f"weights {stored}, computed in bfloat16"
    assert summary["model"]["precision"] == words
    assert words in (tmp_path / "run/report/index.html").read_text()


@pytest.fixture
def source_of(checkpoint_dir, tmp_path):
    """The tiny model with its weights stored in a dtype."""

    def make(dtype):
        directory = tmp_path / dtype
        model = AutoModelForCausalLM.from_pretrained(checkpoint_dir)
        model.to(getattr(torch, dtype)).save_pretrained(directory)
        for path in checkpoint_dir.glob("tokenizer*"):
            (directory / path.name).write_bytes(path.read_bytes())
        return directory

    return make


@pytest.mark.slow
def test_a_run_in_memory_is_measured_as_it_is_saved(source_of, data, tmp_path):
    result = quickly(pmc.load_model(source_of("bfloat16")), data)
    result.model.save(tmp_path / "saved")
    saved = pmc.load_model(tmp_path / "saved")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (saved.params, result.model.params)), strict=True)
    )
    assert answers(saved) == answers(result.model)


def test_weights_are_rounded_layer_by_layer(source_of):
    directory = source_of("float32")
    tensors = tensors_of(directory)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(directory, {**tensors, name: tensors[name].bfloat16()})
    model = pmc.load_model(directory)
    halves = jax.tree.map(
        lambda leaf: leaf + 1e-6 * jnp.arange(leaf.size).reshape(leaf.shape), model.params
    )
    found = as_stored(halves, model.config, directory)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        own = halves
        for key in path:
            own = own[key.key]
        wanted = np.array(own)
        if path[-1].key == "up":
            wanted[1] = torch.tensor(wanted[1]).bfloat16().float().numpy()
        np.testing.assert_array_equal(leaf, wanted)
    assert precision(directory, "float32") == "weights float32 and bfloat16, computed in float32"


def test_the_dtype_on_record(source_of, tmp_path):
    directory = source_of("float32")
    assert compute_dtype(directory) == "float32"
    model = pmc.load_model(directory, dtype="bfloat16")
    model.save(tmp_path / "a")
    assert compute_dtype(tmp_path / "a") == "bfloat16"
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")  # which ignores it
    # Conversion keeps it, and saving a model in float32 removes it.
    assert convert(["from-hf", str(tmp_path / "a"), str(tmp_path / "native")]) == 0
    assert pmc.load_model(tmp_path / "native").dtype == "bfloat16"
    pmc.load_model(tmp_path / "a", dtype="float32").save(tmp_path / "b")
    assert (tmp_path / "b/config.json").read_text() == (directory / "config.json").read_text()
    edit(tmp_path / "a/config.json", **{COMPUTE_DTYPE: "int8"})
    with pytest.raises(UserError, match=f"{COMPUTE_DTYPE} is int8; expected float32, "):
        pmc.load_model(tmp_path / "a")


@pytest.mark.slow
def test_the_terminal_says_which(source_of, tofu_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [
        "train", f"model.path={source_of('float32')}", "model.dtype=bfloat16",
        f"data.path={tofu_dir}", f"runs_dir={tmp_path / 'runs'}", "training.epochs=1",
        "data.retain_rows=4", "evaluation.attack_samples=2", "evaluation.max_new_tokens=4",
        "name=half", "method=finetune",
    ])  # fmt: skip
    train.main()
    assert "(weights float32, computed in bfloat16)" in capsys.readouterr().out
