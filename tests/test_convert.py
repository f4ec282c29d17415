"""Conversion against `transformers`, `safetensors` and `torch`: round trips."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import (
    BIASED,
    assert_same_tensors,
    bpe_tokenizer,
    edit,
    random_llama,
    rewrite,
    tensors_of,
)
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from convert.export import export_checkpoint, write_checkpoint
from convert.load import load_checkpoint, load_config, resolve
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig, abstract_params, param_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """A bfloat16 model with float32 norms, in files with one tensor each or with several."""
    tensors = {
        name: tensor if "norm" in name else tensor.bfloat16()
        for name, tensor in tensors_of(source).items()
    }
    rewrite(source, tensors)
    for number, limit in enumerate((10**9, 10_000)):
        round_trip(source, tmp_path / f"back{number}", file_bytes=limit)
        assert_same_tensors(tensors_of(tmp_path / f"back{number}"), tensors)
        LlamaForCausalLM.from_pretrained(tmp_path / f"back{number}")
    # Data start at a multiple of 8 bytes, and the widest dtype comes first, so all are aligned.
    for path in tmp_path.glob("back*/*.safetensors"):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        dtypes = [entry["dtype"] for name, entry in header.items() if name != "__metadata__"]
        assert length % 8 == 0 and dtypes == sorted(dtypes, key=["F32", "BF16"].index)


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
    with pytest.raises(UserError, match=r"config\.json: not the configuration of these parameters"):
        export_checkpoint(checkpoint.params, other, source, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "there"]


CONFIGS = {
    "tied": {"tie_embeddings": True},
    "biases": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
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
    # The configuration that transformers saves reads back as ours.
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


def test_a_name_that_is_not_a_model(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        resolve(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such directory"):
        resolve("./runs/nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; expected"):
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
    assert "someone/model: no such directory" in str(caught.value)
    assert "no route to host at all" in str(caught.value)


def test_weights_stream_tensor_by_tensor(tmp_path):
    """Loading needs little more than the parameters, and export little more than one tensor.

    On a CPU the parameters lie in NumPy's memory, which tracemalloc counts.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12}
    random_llama(**sizes).save_pretrained(tmp_path / "hf")
    total = sum(t.nbytes for t in tensors_of(tmp_path / "hf").values())
    tensor = 64 * 256 * 4
    small = 200_000  # tensor names and file headers

    def peak(task):
        task()  # run once before, so that imports and caches do not count
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
