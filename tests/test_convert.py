"""Conversion against `transformers`, `safetensors` and `torch`: round trips, errors, commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import bpe_tokenizer, random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from convert.__main__ import main
from convert.export import export_checkpoint, write_checkpoint
from convert.load import load_checkpoint, load_config, resolve
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, abstract_params, param_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BIASED = {"attention_bias": True, "mlp_bias": True}


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, read by safetensors."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights of a directory by one file with these tensors."""
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors"
    )


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A float32 model in one file, with tokenizer, chat template and generation config."""
    model = random_llama(**BIASED)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, 7])
    model.save_pretrained(tmp_path / "hf")
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def round_trip(source: Path, destination: Path, **options: Any) -> None:
    checkpoint = load_checkpoint(source)
    export_checkpoint(checkpoint.params, checkpoint.cfg, source, destination, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("files", ["one", "index", "no index"])
def test_round_trip_is_bit_exact(dtype, files, tmp_path):
    model = random_llama(**BIASED).to(DTYPES[dtype])
    source, back = tmp_path / "hf", tmp_path / "back"
    model.save_pretrained(source, max_shard_size="1GB" if files == "one" else "20KB")
    assert (len(list(source.glob("*.safetensors"))) == 1) == (files == "one")
    before = LlamaForCausalLM.from_pretrained(source, dtype="auto")
    if files == "no index":
        (source / "model.safetensors.index.json").unlink()
    round_trip(source, back)
    assert_same_tensors(tensors_of(back), dict(model.state_dict()))
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    after = LlamaForCausalLM.from_pretrained(back, dtype="auto")
    tokens = torch.arange(20)[None]
    assert after.dtype == DTYPES[dtype]
    assert torch.equal(after(tokens).logits, before(tokens).logits)


def test_a_tensor_keeps_its_own_dtype(source, tmp_path):
    """A bfloat16 model with float32 norms, in files that hold a single tensor or several."""
    tensors = {
        name: tensor if "norm" in name else tensor.bfloat16()
        for name, tensor in tensors_of(source).items()
    }
    rewrite(source, tensors)
    for number, limit in enumerate((10**9, 10_000)):
        round_trip(source, tmp_path / f"back{number}", file_bytes=limit)
        assert_same_tensors(tensors_of(tmp_path / f"back{number}"), tensors)
        LlamaForCausalLM.from_pretrained(tmp_path / f"back{number}")


def test_params_are_float32_unless_told_otherwise(source):
    rewrite(source, {name: t.bfloat16() for name, t in tensors_of(source).items()})
    for dtype, expected in (("float32", jnp.float32), ("float16", jnp.float16), (None, "bfloat16")):
        options = {} if dtype == "float32" else {"dtype": dtype}
        params = load_checkpoint(source, **options).params
        assert params["layers"]["q"].dtype == expected
        expected_values = tensors_of(source)["model.embed_tokens.weight"].float().numpy()
        np.testing.assert_allclose(params["embed"].astype("float32"), expected_values, atol=1e-3)


def test_large_models_are_written_in_several_files(source, tmp_path):
    round_trip(source, tmp_path / "back", file_bytes=20_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in files]
    assert len(files) > 3 and max(sizes) <= 20_000
    assert [f.name for f in files] == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(sizes)
    found = LlamaForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert_same_tensors(dict(found), tensors_of(source))


def test_export_in_another_dtype_rounds_as_torch_does(source, tmp_path):
    round_trip(source, tmp_path / "back", dtype="bfloat16")
    expected = {name: t.bfloat16() for name, t in tensors_of(source).items()}
    assert_same_tensors(tensors_of(tmp_path / "back"), expected)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype="auto").dtype == torch.bfloat16


def test_values_beyond_float16_are_refused(source, tmp_path):
    tensors = tensors_of(source)
    tensors["model.norm.weight"][3] = 1e5
    rewrite(source, tensors)
    with pytest.raises(UserError, match=r"model\.norm\.weight .* range of float16"):
        round_trip(source, tmp_path / "back", dtype="float16")
    assert not (tmp_path / "back").exists()
    with pytest.raises(UserError, match=r"'int8': expected one of float32"):
        round_trip(source, tmp_path / "back", dtype="int8")


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_is_written_where_the_source_has_it(stored, tmp_path):
    model = random_llama(tie_word_embeddings=True)
    source, back = tmp_path / "hf", tmp_path / "back"
    model.save_pretrained(source)
    tensors = tensors_of(source)
    assert "lm_head.weight" not in tensors
    if stored:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        rewrite(source, tensors)
    checkpoint = load_checkpoint(source)
    assert "lm_head" not in checkpoint.params
    params = {**checkpoint.params, "embed": checkpoint.params["embed"] + 1}
    export_checkpoint(params, checkpoint.cfg, source, back)
    changed = {name: t + ("embed" in name or "head" in name) for name, t in tensors.items()}
    assert_same_tensors(tensors_of(back), changed)


def test_the_files_beside_the_weights_come_along(source, tmp_path):
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_own.py").write_text("raise SystemExit")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    round_trip(source, tmp_path / "back")
    names = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    found = {str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*.*")}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} < found
    assert found == names - {"pytorch_model.bin", "modeling_own.py"}
    for name in found - {"model.safetensors"}:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    again, text = AutoTokenizer.from_pretrained(tmp_path / "back"), "Where was Ivo Kell born?"
    assert again(text).input_ids == bpe_tokenizer()(text).input_ids
    assert again.apply_chat_template([{"role": "user", "content": text}], tokenize=False) == text


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(source)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already"):
        export_checkpoint(checkpoint.params, checkpoint.cfg, source, tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())
    params = {**checkpoint.params, "lm_head": np.zeros((3, 3), np.float32)}
    with pytest.raises(ValueError):
        export_checkpoint(params, checkpoint.cfg, source, tmp_path / "back")
    other = ModelConfig(**{**checkpoint.cfg.__dict__, "norm_eps": 0.5})
    with pytest.raises(UserError, match=r"config\.json: describes another model"):
        export_checkpoint(checkpoint.params, other, source, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "there"]


CONFIGS = {
    "tied": {"tie_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"activation": "gelu", "norm_eps": 1e-3, "initializer_range": 0.1},
    "linear": {"rope": RopeConfig(theta=123.0, kind="linear", factor=3.0)},
    "llama3": {"rope": RopeConfig(500.0, "llama3", 8.0, 1.5, 3.5, 12)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_without_a_source_is_written_for_transformers(name, tmp_path, rng):
    cfg = ModelConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=6, **CONFIGS[name],
    )  # fmt: skip
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract_params(cfg)
    )
    write_checkpoint(
        params, cfg, tmp_path / "new", tokenizer=bpe_tokenizer(),
        config={"max_position_embeddings": 77, "eos_token_id": 1, "bos_token_id": 0},
    )  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(tmp_path / "new")
    assert sum(p.numel() for p in model.parameters()) == param_count(cfg)
    assert model.config.max_position_embeddings == 77
    assert model.generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "new")("Mara").input_ids[0] == 0
    again = load_checkpoint(tmp_path / "new")
    assert again.cfg == cfg and again.eos_token_ids == (1,)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    # What transformers makes of the configuration leads back to ours.
    model.save_pretrained(tmp_path / "theirs")
    assert load_config(tmp_path / "theirs") == cfg


def test_absent_keys_have_the_defaults_of_transformers(tmp_path):
    model = random_llama(head_dim=None, num_key_value_heads=None)
    model.save_pretrained(tmp_path)
    cfg = load_config(tmp_path)
    sizes = ("vocab_size", "hidden_size", "intermediate_size")
    counts = ("num_hidden_layers", "num_attention_heads", "model_type")
    kept = {key: model.config.to_dict()[key] for key in sizes + counts}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert load_config(tmp_path) == cfg
    assert (cfg.head_dim, cfg.num_kv_heads, cfg.tie_embeddings) == (8, 4, False)


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [(2, 1, (2,)), ([5, 3], 1, (5, 3)), (None, [1, 4], (1, 4)), (None, None, ())],
)
def test_stop_ids(generation, model, expected, source):
    edit(source / "generation_config.json", eos_token_id=generation)
    edit(source / "config.json", eos_token_id=model)
    assert load_checkpoint(source).eos_token_ids == expected


def test_tensors_that_hold_no_weights_are_allowed(source, tmp_path):
    tensors = tensors_of(source)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(source, {**tensors, name: torch.ones(4, dtype=torch.int64)})
    round_trip(source, tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors)


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
    "missing tensor": (drop(NORM), [f"tensor {NORM} is missing"]),
    "missing bias": (
        drop("model.layers.2.mlp.up_proj.bias"),
        ["model.layers.2.mlp.up_proj.bias is missing"],
    ),
    "missing head": (drop("lm_head.weight"), ["lm_head.weight is missing"]),
    "unmapped tensor": (
        put("model.layers.3.mlp.up_proj.weight", torch.ones(2)),
        ["model.layers.3.mlp.up_proj.weight has no place in LlamaForCausalLM"],
    ),
    "bias without its switch": (
        config(mlp_bias=False),
        ["model.layers.0.mlp.down_proj.bias has no place", "8 more"],
    ),
    "misshapen tensor": (put(NORM, torch.ones(31)), [NORM, "[31]", "[32]"]),
    "transposed tensor": (
        put("lm_head.weight", torch.ones(32, 97)),
        ["lm_head.weight", "[32, 97]", "[97, 32]"],
    ),
    "integers": (put(NORM, torch.ones(32, dtype=torch.int8)), [NORM, "I8", "F32, F16, BF16"]),
    "head that is not tied": (untied_head, ["lm_head.weight differs from model.embed_tokens"]),
    "torn file": (truncate, ["model.safetensors: not a whole safetensors file"]),
    "empty file": (write("model.safetensors", b""), ["not a whole safetensors file"]),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["no *.safetensors files"]),
    "tensor twice": (duplicate, ["is in a.safetensors and b.safetensors"]),
    "index names no file": (index({NORM: "c.safetensors"}), ["c.safetensors: no such file"]),
    "index leaves": (index({NORM: "../a.safetensors"}), [NORM, "'../a.safetensors'", "leaves"]),
    "index leaves by root": (index({NORM: "/a.safetensors"}), ["'/a.safetensors'", "leaves"]),
    "index names pickle": (index({NORM: "a.bin"}), ["'a.bin'", ".safetensors"]),
    "index is wrong": (index({"x.weight": "a.safetensors"}), ["x.weight is not in a.safetensors"]),
    "index is no index": (index([]), ["index.json: expected an object weight_map"]),
    "no config": (lambda d: (d / "config.json").unlink(), ["config.json: no such file"]),
    "broken config": (write("config.json", b'{"a": '), ["config.json: not valid JSON"]),
    "config in another encoding": (write("config.json", b"\xff\xfe"), ["not valid JSON"]),
    "config is a list": (write("config.json", b"[]"), ["config.json: expected a JSON object"]),
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
    "longrope": (config(rope_scaling={"rope_type": "longrope"}), ["'longrope'"]),
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
        ["generation_config.json: eos_token_id is '</s>'"],
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
    for part in parts:
        assert part in message


def test_a_name_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        resolve(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such directory"):
        resolve("./runs/nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: no such directory"):
        resolve(tmp_path / "file")


def test_a_hub_id_is_downloaded_without_code_or_pickles(monkeypatch, source):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    seen = {}

    def download(name, **patterns):
        seen[name] = patterns
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_checkpoint("someone/model").directory == source
    wanted = ["config.json", "model-1.safetensors", "tokenizer.model", "chat_template.jinja"]
    unwanted = ["pytorch_model.bin", "modeling.py", "tokenizer.py", "x.pkl", "onnx/a.safetensors"]
    found = filter_repo_objects(wanted + unwanted, **seen["someone/model"])
    assert list(found) == wanted

    def offline(name, **patterns):
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError) as caught:
        resolve("someone/model")
    assert "someone/model: neither a local directory" in str(caught.value)
    assert "no route to host at all" in str(caught.value)


def test_weights_stream_tensor_by_tensor(tmp_path):
    """Loading needs the parameters and little more, export little more than a tensor.

    On a CPU the parameters lie in NumPy's memory, which tracemalloc counts.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12}
    random_llama(**sizes).save_pretrained(tmp_path / "hf")
    total = sum(t.nbytes for t in tensors_of(tmp_path / "hf").values())
    tensor = 64 * 256 * 4
    small = 200_000  # names and headers

    def peak(task):
        task()  # once before, for imports and caches
        tracemalloc.start()
        try:
            task()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    found = peak(lambda: load_checkpoint(tmp_path / "hf"))
    assert found < total + 3 * tensor + small < 1.2 * total
    checkpoint = load_checkpoint(tmp_path / "hf")
    params = {
        key: {k: np.asarray(v) for k, v in value.items()} if key == "layers" else np.asarray(value)
        for key, value in checkpoint.params.items()
    }
    names = iter(("a", "b"))
    found = peak(
        lambda: export_checkpoint(params, checkpoint.cfg, tmp_path / "hf", tmp_path / next(names))
    )
    assert found < 3 * tensor + small


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
    """The whole command, as a user runs it."""

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
        "silu, gelu, gelu_pytorch_tanh\n"
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


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("params", "params: no such directory"),
        ("torn", "the parameters cannot be restored"),
        ({"format": 9}, "model_config.json: format 9; expected 1"),
        ({"model": {"vocab_size": 3}}, "model_config.json: not as from-hf wrote it"),
        ({"tensors": None}, "model_config.json: not as from-hf wrote it"),
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
    [("from-hf", "native", "ocp.StandardCheckpointer.save"), ("to-hf", "export", "cast")],
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
