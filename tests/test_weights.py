"""Weights that are not finite: found when a checkpoint is read or written, and named."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import BIASED, bpe_tokenizer, random_llama, rewrite, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from test_families import random_model

import pmc_jax as pmc
from convert.__main__ import main as convert
from convert.export import export_checkpoint
from convert.finite import PIECE, all_finite, narrows
from convert.load import check_checkpoint, load_checkpoint
from pmc_jax import ask, train
from pmc_jax.cli import evaluate
from pmc_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def source(source: Path) -> Path:
    """A checkpoint whose vocabulary has every token of its tokenizer."""
    random_llama(**BIASED, vocab_size=len(bpe_tokenizer())).save_pretrained(source)
    return source


@given(
    st.sampled_from(["uint16", "uint32", "uint64"]).flatmap(
        lambda bits: arrays.arrays(bits, st.integers(1, 5))
    ),
    st.booleans(),
)
def test_every_bit_pattern_is_judged_as_numpy_does(bits, brain):
    kinds = {2: BFLOAT16 if brain else np.float16, 4: np.float32, 8: np.float64}
    values = bits.view(kinds[bits.itemsize])
    assert all_finite(values) == np.isfinite(values).all()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_value_is_found_wherever_it_is(dtype, value):
    largest = ml_dtypes.finfo(dtype).max
    for place in (0, PIECE - 1, PIECE, 3 * PIECE // 2):
        values = np.full(2 * PIECE + 3, -largest, dtype)
        assert all_finite(values)
        values[place] = value
        assert not all_finite(values) and not all_finite(values[::-1])
        assert all_finite(values[place + 1 :])


def test_which_casts_lose_range():
    wide, kinds = {np.float64: 3, np.float32: 2, BFLOAT16: 1, np.float16: 0}, []
    for source, own in wide.items():
        for target, other in wide.items():
            assert narrows(np.dtype(source), np.dtype(target)) == (own > other)
            kinds.append(own > other)
    assert sum(kinds) == 6


def broken(directory: Path, name: str = UP, dtype: str = "float32", value=math.nan, count=1):
    """Make some values of a tensor not finite, and all tensors a dtype."""
    tensors = {key: tensor.to(TORCH[dtype]) for key, tensor in tensors_of(directory).items()}
    tensors[name].view(-1)[5 : 5 + count] = value
    rewrite(directory, tensors)
    return directory


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loading_names_the_tensor(source, dtype, value):
    broken(source, dtype=dtype, value=value, count=3)
    with pytest.raises(UserError) as error:
        pmc.load_model(source)
    assert f"{source / 'model.safetensors'}: tensor {UP} has 3 of 1,536 values" in str(error.value)
    assert "\n" not in str(error.value)
    model = pmc.load_model(source, check_weights=False)
    assert np.isnan(model.params["layers"]["up"]).sum() == (3 if math.isnan(value) else 0)
    assert (~np.isfinite(model.params["layers"]["up"])).sum() == 3


def test_a_tied_copy_with_the_same_nan_is_named_as_such(source):
    tensors = tensors_of(source)
    tensors["model.embed_tokens.weight"][2, 2] = math.nan
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    rewrite(source, tensors)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"tensor model\.embed_tokens\.weight has 1 of "):
        load_checkpoint(source)


def test_a_float64_value_that_overflows_when_it_is_read(source):
    tensors = {name: tensor.double() for name, tensor in tensors_of(source).items()}
    tensors[UP].view(-1)[7] = 1e39
    rewrite(source, tensors)
    with pytest.raises(UserError, match=r"up_proj\.weight has 1 of 1,536 .* range of float32"):
        load_checkpoint(source)
    assert np.isinf(load_checkpoint(source, check_weights=False).params["layers"]["up"]).any()


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_checkpoints_name_the_tensor(source, tmp_path, capsys, dtype, mesh):
    broken(source, dtype=dtype, count=2)
    native = tmp_path / "native"
    assert convert(["from-hf", "--no-check-weights", str(source), str(native)]) == 0
    capsys.readouterr()
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    with pytest.raises(UserError, match=rf"{native}.params: tensor {UP} has 2 of 1,536 values"):
        load_checkpoint(native, mesh=devices if mesh else None)
    load_checkpoint(native, mesh=devices if mesh else None, check_weights=False)
    assert convert(["to-hf", str(native), str(tmp_path / "back")]) == 2
    assert f"tensor {UP} has 2 of 1,536" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
    assert convert(["to-hf", "--no-check-weights", str(native), str(tmp_path / "back")]) == 0
    assert torch.isnan(tensors_of(tmp_path / "back")[UP]).sum() == 2


@pytest.mark.parametrize(
    ("stored", "target", "value"),
    [("float32", "bfloat16", 3.4e38), ("float32", "float16", 1e5), ("bfloat16", "float16", 1e5)],
)
def test_a_cast_that_overflows_is_refused_both_ways(source, tmp_path, stored, target, value):
    broken(source, dtype=stored, value=value)
    wanted = rf"tensor {UP} has 1 of 1,536 values beyond the range of {target}"
    with pytest.raises(UserError, match=wanted):
        load_checkpoint(source, dtype=target)
    found = load_checkpoint(source, dtype=None)
    with pytest.raises(UserError, match=wanted):
        export_checkpoint(found.params, found.cfg, source, tmp_path / "out", dtype=target)
    assert not (tmp_path / "out").exists()
    load_checkpoint(source, dtype=target, check_weights=False)


def test_a_model_with_broken_weights_is_not_saved(source, tmp_path):
    model = pmc.load_model(source)
    layers = {**model.params["layers"], "up": model.params["layers"]["up"].at[1, 0, 0].set(jnp.inf)}
    changed = dataclasses.replace(model, params={**model.params, "layers": layers})
    with pytest.raises(UserError, match=f"tensor {UP} has 1 of 1,536 values that are not finite"):
        changed.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def nan_model(tmp_path: Path) -> Path:
    """The bundled model with one NaN."""
    directory = pmc.load_model().save(tmp_path / "nan")
    return broken(directory)


@pytest.mark.slow
def test_every_command_ends_with_one_line_and_writes_nothing(
    nan_model, tmp_path, capsys, monkeypatch
):
    path = f"model.path={nan_model}"
    evaluations = f"evaluations_dir={tmp_path / 'evaluations'}"
    commands = {
        "ask": (ask, [path, "question=Who?"]),
        "evaluate": (evaluate, [path, "suite=quick", evaluations]),
        "evaluate beside": (evaluate, [f"compare={nan_model}", "suite=quick", evaluations]),
        "train": (train, [path, f"runs_dir={tmp_path / 'runs'}"]),
        "from-hf": (None, ["from-hf", str(nan_model), str(tmp_path / "native")]),
    }
    for name, (module, arguments) in commands.items():
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            status = convert(arguments) if module is None else module.main()
        except SystemExit as end:
            status = end.code
        error = capsys.readouterr().err
        assert status == 2, name
        assert error.splitlines()[-1].startswith("error: ") and "Traceback" not in error, error
        assert f"error: {nan_model}/model.safetensors: tensor {UP} has 1 of " in error, name
    assert [own.name for own in tmp_path.iterdir()] == ["nan"]


@pytest.mark.parametrize("family", ["phi", "qwen2", "gemma3_text"])
def test_every_tensor_of_a_sharded_bfloat16_checkpoint_is_looked_at(family, tmp_path):
    """Weights, biases, norms and heads, in whichever file they are."""
    model = random_model(family).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 1
    check_checkpoint(tmp_path)
    for name, file in files.items():
        tensors = load_file(tmp_path / file)
        kept = tensors[name].view(-1)[-1].clone()
        tensors[name].view(-1)[-1] = math.inf
        save_file(tensors, tmp_path / file, {"format": "pt"})
        with pytest.raises(UserError) as error:
            check_checkpoint(tmp_path)
        assert f"{tmp_path / file}: tensor {name} has 1 of" in str(error.value)
        tensors[name].view(-1)[-1] = kept
        save_file(tensors, tmp_path / file, {"format": "pt"})
