"""Errors of the conversion, its commands, and native checkpoints."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import assert_same_tensors, edit, rewrite, tensors_of
from transformers import LlamaForCausalLM

from convert.__main__ import main
from convert.load import load_checkpoint
from convert.native import open_leaf, restore_params, save_native
from pmc_jax.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def drop(name):
    def change(directory: Path) -> None:
        tensors = tensors_of(directory)
        del tensors[name]
        rewrite(directory, tensors)

    return change


def put(name, value):
    return lambda directory: rewrite(directory, {**tensors_of(directory), name: value})


def config(**changes):
    return lambda directory: edit(directory / "config.json", **changes)


def write(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def index(weight_map):
    def change(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "a.safetensors")
        content = {"weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def duplicate(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    shutil.copy(directory / "a.safetensors", directory / "b.safetensors")


def untied_head(directory: Path) -> None:
    edit(directory / "config.json", tie_word_embeddings=True)


NORM = "model.layers.1.input_layernorm.weight"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

WRONG: dict[str, tuple[Any, list[str]]] = {
    "missing tensor": (drop(NORM), [f"LlamaForCausalLM tensor {NORM} is missing"]),
    "missing bias": (
        drop("model.layers.2.mlp.up_proj.bias"),
        ["model.layers.2.mlp.up_proj.bias is missing"],
    ),
    "missing head": (drop("lm_head.weight"), ["lm_head.weight is missing"]),
    "unmapped tensor": (
        put("model.layers.3.mlp.up_proj.weight", torch.ones(2)),
        ["model.layers.3.mlp.up_proj.weight is not part of LlamaForCausalLM"],
    ),
    "bias without its switch": (
        config(mlp_bias=False),
        ["model.layers.0.mlp.down_proj.bias is not part of LlamaForCausalLM", "8 more"],
    ),
    "misshapen tensor": (
        put(NORM, torch.ones(31)),
        ["model.safetensors: LlamaForCausalLM tensor", NORM, "[31]", "[32]"],
    ),
    "transposed tensor": (
        put("lm_head.weight", torch.ones(32, 97)),
        ["lm_head.weight", "[32, 97]", "[97, 32]"],
    ),
    "integers": (
        put(NORM, torch.ones(32, dtype=torch.int8)),
        ["model.safetensors: LlamaForCausalLM tensor", NORM, "I8", "F32, F16, BF16"],
    ),
    "head that is not tied": (untied_head, ["lm_head.weight differs from model.embed_tokens"]),
    "torn file": (truncate, ["model.safetensors: not a complete safetensors file"]),
    "empty file": (write("model.safetensors", b""), ["not a complete safetensors file"]),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["no *.safetensors files"]),
    "pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        ["the weights are pickled (pytorch_model.bin)", "save it again with save_pretrained"],
    ),
    "tensor twice": (duplicate, ["is in a.safetensors and b.safetensors"]),
    "index names no file": (index({NORM: "c.safetensors"}), ["c.safetensors: no such file"]),
    "index leaves": (
        index({NORM: "../a.safetensors"}),
        [NORM, "'../a.safetensors'", "a file in this directory"],
    ),
    "index leaves by root": (
        index({NORM: "/a.safetensors"}),
        ["'/a.safetensors'", "a file in this directory"],
    ),
    "index names pickle": (index({NORM: "a.bin"}), ["'a.bin'", ".safetensors"]),
    "index is wrong": (index({"x.weight": "a.safetensors"}), ["x.weight is not in a.safetensors"]),
    "index is no index": (index([]), ["index.json: weight_map is a list; expected an object"]),
    "no config": (lambda d: (d / "config.json").unlink(), ["config.json: no such file"]),
    "broken config": (write("config.json", b'{"a": '), ["config.json, line 1: not valid JSON"]),
    "config in another encoding": (
        write("config.json", b"\xff\xfe"),
        ["config.json, line 1: not UTF-8"],
    ),
    "config is a list": (write("config.json", b"[]"), ["config.json: found a list; expected "]),
    "architecture": (
        config(architectures=["GPT2LMHeadModel"]),
        ["GPT2LMHeadModel", "expected one of LlamaForCausalLM"],
    ),
    "head of a classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        ["LlamaForSequenceClassification"],
    ),
    "model type": (config(architectures=None, model_type="gpt2"), ["gpt2"]),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), ["quantised", "gptq"]),
    "activation": (config(hidden_act="relu"), ["hidden_act 'relu'", "silu, gelu"]),
    "size missing": (config(vocab_size=None), ["vocab_size is missing"]),
    "size as text": (config(hidden_size="32"), ["hidden_size is '32'", "positive integer"]),
    "no layers": (config(num_hidden_layers=0), ["num_hidden_layers is 0"]),
    "a long text": (config(hidden_size="x" * 10**6), ["hidden_size is 'xxx", "xxx'; expected"]),
    "switch as text": (config(mlp_bias="no"), ["mlp_bias is 'no'", "true or false"]),
    "kv heads": (config(num_key_value_heads=3), ["num_attention_heads 4", "3"]),
    "odd head_dim": (config(head_dim=7), ["head_dim 7 is odd"]),
    "eps": (config(rms_norm_eps=True), ["rms_norm_eps is True", "positive number"]),
    "yarn": (
        config(rope_parameters={"rope_type": "yarn", "factor": 2.0}),
        ["rope type 'yarn'", "default, linear, llama3"],
    ),
    "dynamic": (
        config(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
        ["rope type 'dynamic'"],
    ),
    "rope is text": (config(rope_scaling="linear"), ["'linear'", "expected an object"]),
    "rope factor": (config(rope_scaling={"type": "linear"}), ["factor is missing"]),
    "llama3 factor": (
        config(rope_scaling={**LLAMA3, "low_freq_factor": None}),
        ["low_freq_factor is missing"],
    ),
    "llama3 ramp": (
        config(rope_scaling={**LLAMA3, "low_freq_factor": 4.0}),
        ["low_freq_factor 4.0 is not below high_freq_factor 4.0"],
    ),
    "partial rotary": (config(partial_rotary_factor=0.5), ["partial_rotary_factor"]),
    "stop ids": (
        write("generation_config.json", b'{"eos_token_id": "</s>"}'),
        ["generation_config.json: eos_token_id is </s>; expected an id below vocab_size, 97"],
    ),
    "stop id beyond the vocabulary": (
        write("generation_config.json", b'{"eos_token_id": [1, 97]}'),
        ["eos_token_id is [1, 97]; expected an id below vocab_size, 97"],
    ),
    "stop id of config.json, which is not used": (
        config(eos_token_id=97),
        ["config.json: eos_token_id is 97; expected an id below vocab_size, 97"],
    ),
    "stop id beyond int32": (
        write("generation_config.json", b'{"eos_token_id": 2147483648}'),
        ["eos_token_id is 2147483648; expected an id below"],
    ),
    "activation is a list": (config(hidden_act=["silu"]), ["hidden_act ['silu']", "silu, gelu"]),
    "huge eps": (config(rms_norm_eps=10**400), ["rms_norm_eps is 1000", "number of at most 1"]),
    "nested": (write("config.json", b'{"a":' * 100_000), ["not valid JSON (nested too deeply)"]),
    "layers": (
        config(num_hidden_layers=10**9),
        ["num_hidden_layers is 1000000000; expected a positive integer of at most 4096"],
    ),
    "rope type is a list": (
        config(rope_parameters={"rope_type": ["linear"]}),
        ["rope type ['linear'] is not"],
    ),
    "layer types": (
        config(
            architectures=["Qwen2ForCausalLM"], use_sliding_window=True, layer_types=[["full"]] * 3
        ),
        ["layer_types is [['full'], ", "expected, for each of 3 layers"],
    ),
    "first layer with a window": (
        config(
            architectures=["Qwen2ForCausalLM"], use_sliding_window=True, max_window_layers="all"
        ),
        ["max_window_layers is 'all'; expected the number of a layer"],
    ),
    "rope of Gemma is text": (
        config(architectures=["Gemma3ForCausalLM"], rope_parameters={"full_attention": "linear"}),
        ["full_attention is 'linear'; expected an object"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name, source):
    change, parts = WRONG[name]
    change(source)
    with pytest.raises(UserError) as caught:
        load_checkpoint(source)
    message = str(caught.value)
    assert str(source) in message and "\n" not in message
    assert len(message) < len(str(source)) + 400
    for part in parts:
        assert part in message


@pytest.mark.parametrize("dtype", DTYPES)
def test_native_checkpoints_turn_back_exactly(dtype, source, tmp_path, capsys):
    tensors = {name: t.to(DTYPES[dtype]) for name, t in tensors_of(source).items()}
    rewrite(source, tensors)
    native, back = tmp_path / "native", tmp_path / "back"
    assert main(["from-hf", str(source), str(native)]) == 0
    assert "reading tensors: " in capsys.readouterr().out
    assert main(["to-hf", str(native), str(back)]) == 0
    assert_same_tensors(tensors_of(back), tensors)
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in back.iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (back / name).read_bytes() == (source / name).read_bytes()
    ours, theirs = load_checkpoint(native), load_checkpoint(source)
    assert (ours.cfg, ours.eos_token_ids) == (theirs.cfg, theirs.eos_token_ids)
    assert ours.params["layers"]["q"].dtype == jnp.float32
    np.testing.assert_array_equal(
        ours.params["layers"]["o_bias"], theirs.params["layers"]["o_bias"]
    )


def test_dtype_of_the_commands(source, tmp_path):
    expected = {name: t.bfloat16() for name, t in tensors_of(source).items()}
    assert main(["from-hf", str(source), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert main(["to-hf", str(tmp_path / "half"), str(tmp_path / "a")]) == 0
    assert main(["from-hf", str(source), str(tmp_path / "full")]) == 0
    assert main(["to-hf", str(tmp_path / "full"), str(tmp_path / "b"), "--dtype", "bfloat16"]) == 0
    for name in ("a", "b"):
        assert_same_tensors(tensors_of(tmp_path / name), expected)
        assert LlamaForCausalLM.from_pretrained(tmp_path / name, dtype="auto").dtype == (
            torch.bfloat16
        )


def test_inspect_lists_every_leaf_and_the_total(source, capsys):
    assert main(["inspect", str(source)]) == 0
    out = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in tensors_of(source).values())
    assert "LlamaForCausalLM" in out and "num_kv_heads         2" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["total", f"{count:,}"] in lines
    assert ["layers/q", "[3,", "32,", "4,", "12]", "float32", f"{3 * 32 * 48:,}"] in lines
    assert len([line for line in lines if line and line[0].startswith("layers/")]) == 16


def test_user_errors_are_one_line_and_status_2(source, tmp_path):
    """The whole command in a process of its own."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "convert", *map(str, arguments)],
            capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    edit(source / "config.json", hidden_act="relu")
    found = run("from-hf", source, tmp_path / "native")
    assert found.returncode == 2
    assert found.stderr == (
        f"error: {source}/config.json: hidden_act 'relu' is not supported; expected one of "
        "silu, gelu, gelu_pytorch_tanh, gelu_new\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    found = run("from-hf", source, tmp_path / "native", "--dtype", "int4")
    assert found.returncode == 2 and "invalid choice: 'int4'" in found.stderr


def break_native(part):
    def change(native: Path) -> None:
        if part == "params":
            shutil.rmtree(native / "params")
        elif part == "torn":
            for path in (native / "params").rglob("*"):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            edit(native / "model_config.json", **part)

    return change


def test_a_native_checkpoint_in_many_pieces(source, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(source)
    monkeypatch.setattr("convert.native.PIECE_BYTES", 1000)
    save_native(checkpoint.params, checkpoint.cfg, source, tmp_path / "native", {})
    path = tmp_path / "native/params"
    for name in ("embed", "layers.up"):
        assert math.prod(open_leaf(path, name).chunk_layout.read_chunk.shape) <= 250
    restored = restore_params(tmp_path / "native", checkpoint.cfg, None)
    jax.tree.map(np.testing.assert_array_equal, restored, checkpoint.params)
    other = dataclasses.replace(checkpoint.cfg, vocab_size=checkpoint.cfg.vocab_size + 1)
    with pytest.raises(UserError, match=r"embed has shape \(\d+, \d+\); expected"):
        restore_params(tmp_path / "native", other, None)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("params", "params: no such directory"),
        ("torn", "the parameters cannot be restored"),
        ({"format": 9}, "model_config.json: format 9; expected 1"),
        ({"model": {"vocab_size": 3}}, "model_config.json: malformed"),
        ({"tensors": None}, "model_config.json: malformed"),
    ],
)
def test_a_broken_native_checkpoint(part, message, source, tmp_path, capsys):
    native = tmp_path / "native"
    assert main(["from-hf", str(source), str(native)]) == 0
    capsys.readouterr()
    break_native(part)(native)
    assert main(["to-hf", str(native), str(tmp_path / "back")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "back").exists()


def test_commands_refuse_the_wrong_directory(source, tmp_path, capsys):
    assert main(["to-hf", str(source), str(tmp_path / "back")]) == 2
    assert "no native checkpoint" in capsys.readouterr().err
    assert main(["from-hf", str(source), str(source)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "config.json: no such file" in capsys.readouterr().err


KILLED = """
import os, signal, sys
import convert.{module}
from convert.__main__ import main

def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

convert.{module}.{function} = killed
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "module", "function"),
    [("from-hf", "native", "ocp.Checkpointer.save"), ("to-hf", "export", "cast")],
)
def test_a_killed_conversion_leaves_no_finished_directory(
    command, module, function, source, tmp_path
):
    native = tmp_path / "native"
    if command == "to-hf":
        assert main(["from-hf", str(source), str(native)]) == 0
    arguments = [command, source if command == "from-hf" else native, tmp_path / "out"]
    code = KILLED.format(module=module, function=function)
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert found.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.glob(".out.*.partial")]
    assert main(list(map(str, arguments))) == 0
