"""Every model family against `transformers`: logits, gradients, decoding and export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_tensors, rewrite, slow_but, tensors_of
from flax.traverse_util import flatten_dict, unflatten_dict
from test_model import jitted_logits, our_logits, padded_batch, positions_of, their_logits
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

import convert.__main__ as convert
from convert.directory import read_config
from convert.export import export_checkpoint, stored_tensors
from convert.families import family_of
from convert.load import load_checkpoint
from convert.native import read_native, restore_params, save_native
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.model import decode_step, forward, init_suffix, param_count, prefill, token_nll
from pmc_jax.model.kernels.native import VECTOR

pytestmark = pytest.mark.usefixtures("quick_compilation")

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}

# Windows are shorter than the sequences, so that they have an effect.
BASES: dict[str, dict[str, Any]] = {
    "phi": {"head_dim": None, "hidden_size": 32, "num_key_value_heads": 4},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 7},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 3.0},
    "phi3": {"head_dim": None, "sliding_window": 5},
}  # fmt: skip

# Settings that keep all shapes: with the same weights, both outputs must change alike.
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "phi": {
        "norm eps": {"layer_norm_eps": 0.1},
        "activation": {"hidden_act": "silu"},
        "partial rotary": {"partial_rotary_factor": 0.25},
        "new partial rotary": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                "partial_rotary_factor": 1.0}
        },
        "old rope": {"rope_theta": 40.0},
        "linear rope": {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    },
    "gemma3_text": {
        "norm eps": {"rms_norm_eps": 0.1},
        "activation": {"hidden_activation": "silu"},
        "attention scale": {"query_pre_attn_scalar": 30},
        "window": {"sliding_window": 9},
        "no window": {"layer_types": ["full_attention"] * 3},
        "pattern": {"sliding_window_pattern": 3},
        "layer types": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "ropes": {"rope_parameters": GEMMA_ROPE},
        "old thetas": {"rope_theta": 900.0, "rope_local_base_freq": 30.0},
        "old scaling": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "logit soft-cap": {"final_logit_softcapping": 3.0},
    },
    "qwen2": {
        "norm eps": {"rms_norm_eps": 0.1},
        "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "old rope": {"rope_theta": 40.0},
        "linear rope": {"rope_parameters": LINEAR},
    },
    "qwen3": {
        "norm eps": {"rms_norm_eps": 0.1},
        "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "layer types": {
            "use_sliding_window": True, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "old rope": {"rope_theta": 40.0},
    },
    "mistral": {
        "norm eps": {"rms_norm_eps": 0.1},
        "window": {"sliding_window": 9},
        "no window": {"sliding_window": None},
        "linear rope": {"rope_parameters": LINEAR},
    },
    "gemma2": {
        "norm eps": {"rms_norm_eps": 0.1},
        "attention scale": {"query_pre_attn_scalar": 30},
        "window": {"sliding_window": 9},
        "layer types": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "attention soft-cap": {"attn_logit_softcapping": 0.7},
        "no attention soft-cap": {"attn_logit_softcapping": None},
        "logit soft-cap": {"final_logit_softcapping": 1.0},
        "no logit soft-cap": {"final_logit_softcapping": None},
        "old rope": {"rope_theta": 40.0},
    },
    "phi3": {
        "norm eps": {"rms_norm_eps": 0.1},
        "window": {"sliding_window": 9},
        "no window": {"sliding_window": None},
        "old rope": {"rope_theta": 40.0},
        "partial rotary": {"partial_rotary_factor": 0.5},
        "short longrope": {"rope_parameters": LONGROPE, "max_position_embeddings": 4096 * 32},
        "long longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16,
                          "max_position_embeddings": 64},
        "old longrope": {
            "rope_scaling": {"type": "longrope", "short_factor": LONGROPE["long_factor"],
                             "long_factor": LONGROPE["short_factor"]},
            "max_position_embeddings": 4096,
        },
        "oldest longrope": {
            "rope_scaling": {"type": "su", "short_factor": LONGROPE["long_factor"],
                             "long_factor": LONGROPE["short_factor"],
                             "original_max_position_embeddings": 4096},
        },
        "longrope scaling": {"rope_parameters": {**LONGROPE, "attention_factor": 1.7}},
    },
}  # fmt: skip

# Settings that change shapes.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "phi": {"grouped": {"num_key_value_heads": 2}},
    "gemma3_text": {"biases": {"attention_bias": True}, "untied": {"tie_word_embeddings": False}},
    "qwen2": {"tied": {"tie_word_embeddings": True}},
    "qwen3": {"tied": {"tie_word_embeddings": True}, "biases": {"attention_bias": True}},
    "mistral": {"one kv head": {"num_key_value_heads": 1}},
    "gemma2": {"biases": {"attention_bias": True}},
    "phi3": {"tied": {"tie_word_embeddings": True}, "grouped": {"num_key_value_heads": 1}},
}

CASES = [
    (family, name) for family in BASES for name in ("plain", *SWITCHES[family], *SHAPES[family])
]


def random_model(family: str, **changes: Any) -> torch.nn.Module:
    """A tiny model in which every parameter, biases and norms included, is random."""
    # torch gives no gradient to the embedding of a padding token.
    settings = {**SMALL, "pad_token_id": None, **BASES[family], **changes}
    settings = {k: v for k, v in settings.items() if k != "head_dim" or v is not None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.15 * torch.randn_like(parameter))
    return model


def changes_of(family: str, name: str) -> dict[str, Any]:
    return {"plain": {}, **SWITCHES[family], **SHAPES[family]}[name]


def load(model, directory: Path):
    model.save_pretrained(directory)
    return load_checkpoint(directory)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_logits_equal_transformers(family, name, tmp_path, rng):
    model = random_model(family, **changes_of(family, name))
    checkpoint = load(model, tmp_path)
    tokens, mask = padded_batch(rng)
    with torch.no_grad():
        theirs = their_logits(model, tokens, mask)[torch.tensor(mask)]
        if name in SWITCHES[family]:
            plain = their_logits(random_model(family), tokens, mask)[torch.tensor(mask)]
            assert (plain - theirs).abs().max() > 1e-3
    assert np.abs(our_logits(checkpoint, tokens, mask)[mask] - theirs.numpy()).max() <= 1e-4


@pytest.mark.parametrize(
    ("family", "name"),
    slow_but(
        [(family, "plain") for family in BASES],
        [(family, name) for family in BASES for name in ("plain", *SHAPES[family])],
    ),
)
def test_loss_gradients_equal_transformers(family, name, tmp_path, rng):
    model = random_model(family, **changes_of(family, name))
    checkpoint = load(model, tmp_path)
    tokens, mask = padded_batch(rng)
    counted = mask & np.pad(mask[:, :-1], ((0, 0), (1, 0)))
    nll = torch.nn.functional.cross_entropy(
        their_logits(model, tokens, mask)[:, :-1].transpose(1, 2),
        torch.tensor(tokens[:, 1:]),
        reduction="none",
    )
    nll[torch.tensor(counted[:, 1:])].mean().backward()
    expected = {name: p.grad.numpy() for name, p in model.named_parameters()}

    @jax.jit
    @jax.grad
    def gradients_of(params):
        inputs = jnp.asarray(tokens)
        hidden = forward(params, inputs, positions_of(mask), jnp.asarray(mask), checkpoint.cfg)
        nll = token_nll(params, hidden, inputs, checkpoint.cfg)
        return jnp.sum(nll * counted) / counted.sum()

    family_table = read_config(tmp_path)[1]
    gradients = gradients_of(checkpoint.params)
    found = dict(stored_tensors(gradients, checkpoint.cfg, family_table, "float32"))
    assert set(found) == set(expected)
    for tensor, gradient in found.items():
        largest = np.abs(expected[tensor]).max()
        assert np.abs(gradient - expected[tensor]).max() <= 1e-4 * largest + 1e-9, tensor


@pytest.mark.parametrize("family", BASES)
def test_decoding_equals_the_whole_forward_pass(family, tmp_path, rng):
    """At every position, for left-padded prompts longer than any window."""
    checkpoint = load(random_model(family), tmp_path)
    cfg, params = checkpoint.cfg, checkpoint.params
    prompts, samples, prompt, time = 2, 2, 11, 20
    mask = np.arange(time) >= np.array([[0], [4]])
    tokens = rng.integers(0, SMALL["vocab_size"], (prompts, samples, time))
    tokens[:, :, :prompt] = tokens[:, :1, :prompt]
    whole = our_logits(checkpoint, tokens.reshape(-1, time), mask.repeat(samples, axis=0))
    whole = whole.reshape(prompts, samples, time, -1)
    tolerance = 1e-5 * np.abs(whole).max()
    first, prefix = jax.jit(prefill, static_argnames="cfg")(
        params, tokens[:, 0, :prompt], mask[:, :prompt], cfg
    )
    assert np.abs(np.asarray(first) - whole[:, 0, prompt - 1]).max() <= tolerance
    step_once = jax.jit(decode_step, static_argnames="cfg")
    suffix = init_suffix(prefix, samples, time - prompt)
    for step, place in enumerate(range(prompt, time)):
        found, suffix = step_once(params, tokens[:, :, place], step, prefix, suffix, cfg)
        assert np.abs(np.asarray(found) - whole[:, :, place]).max() <= tolerance


@pytest.mark.parametrize("family", BASES)
def test_greedy_equals_generate(family, tmp_path, rng):
    """With head sizes that the CPU kernels support, if the family allows it."""
    own_heads = BASES[family].get("head_dim", SMALL["head_dim"]) is not None
    model = random_model(family, **({"head_dim": 16} if own_heads else {}))
    checkpoint = load(model, tmp_path)
    assert checkpoint.cfg.head_dim % VECTOR == 0
    prompts = [rng.integers(3, 97, n).tolist() for n in (3, 9, 14, 17)]
    found = generate(
        checkpoint.params, prompts, cfg=checkpoint.cfg,
        sampling=Sampling(temperature=0.0, stop_ids=(1,)), key=jax.random.key(0), limits=[12] * 4,
    )  # fmt: skip
    for prompt, (ours,) in zip(prompts, found, strict=True):
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=1,
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            )  # fmt: skip
        assert ours == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", BASES)
def test_export_round_trips_and_counts(family, tmp_path, rng):
    model = random_model(family)
    checkpoint = load(model, tmp_path / "hf")
    assert param_count(checkpoint.cfg) == sum(p.numel() for p in model.parameters())
    export_checkpoint(checkpoint.params, checkpoint.cfg, tmp_path / "hf", tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "hf"))
    tokens, mask = padded_batch(rng)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(their_logits(back, tokens, mask), their_logits(model, tokens, mask))
    save_native(checkpoint.params, checkpoint.cfg, tmp_path / "hf", tmp_path / "native", {})
    cfg, _ = read_native(tmp_path / "native")
    assert cfg == checkpoint.cfg
    restored = restore_params(tmp_path / "native", cfg, None)
    jax.tree.map(np.testing.assert_array_equal, restored, checkpoint.params)


@pytest.mark.parametrize("family", BASES)
def test_every_leaf_changes_the_output(family, tmp_path, rng):
    checkpoint = load(random_model(family), tmp_path)
    leaves = flatten_dict(checkpoint.params)
    tokens, mask = padded_batch(rng)
    everything = np.ones_like(mask)
    plain = our_logits(checkpoint, tokens)
    for path, leaf in leaves.items():
        params = unflatten_dict({**leaves, path: leaf + 0.1 * rng.normal(size=leaf.shape)})
        changed = jitted_logits(params, tokens, everything, checkpoint.cfg)
        assert np.abs(np.asarray(changed) - plain).max() > 1e-4, path


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_configuration_survives_the_way_back(family, name, tmp_path):
    random_model(family, **changes_of(family, name)).config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [type(random_model(family)).__name__]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, table, cfg = read_config(tmp_path)
    again = table.from_hf(table.to_hf(cfg))
    changed = {
        field.name
        for field in dataclasses.fields(cfg)
        if getattr(again, field.name) != pytest.approx(getattr(cfg, field.name))
    } if again != cfg else set()  # fmt: skip
    assert not changed
    # transformers reads the configuration that we write with the same meaning.
    theirs = AutoConfig.for_model(family, **table.to_hf(cfg)).to_dict()
    assert table.from_hf(theirs) == again


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("phi", {"qk_layernorm": True}, "qk_layernorm is true"),
        (
            "phi",
            {"rope_parameters": {"partial_rotary_factor": 1.5}},
            "partial_rotary_factor is 1.5; expected at most 1",
        ),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types is .*for each of 3 layers"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types is"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1; expected a positive integer"),
        (
            "phi3",
            {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}},
            r"long_factor is \[1.0\]; expected a list of 4 positive numbers",
        ),
    ],
)
def test_what_is_not_supported_is_named(family, changes, message, tmp_path):
    random_model(family).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path)


def multimodal_model(**text: Any) -> Gemma3ForConditionalGeneration:
    """A tiny random Gemma 3 with a vision tower."""
    torch.manual_seed(0)
    settings = {**SMALL, **BASES["gemma3_text"], "pad_token_id": None, **text}
    config = Gemma3Config(
        text_config=settings,
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4, image_token_index=90, boi_token_index=91, eoi_token_index=92,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


NEW_NAMES = {
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


@pytest.mark.parametrize("layout", ["hub", "modules"])
def test_the_language_model_of_a_multimodal_checkpoint(layout, tmp_path, rng):
    """With either kind of tensor names; every export keeps the vision weights."""
    model = multimodal_model()
    source = tmp_path / "hf"
    model.save_pretrained(source)
    if layout == "modules":
        new = {
            next(b + name.removeprefix(a) for a, b in NEW_NAMES.items() if name.startswith(a)): t
            for name, t in tensors_of(source).items()
        }
        rewrite(source, new)
        assert set(new) == {name for name, _ in model.named_parameters()}
    checkpoint = load_checkpoint(source)
    language = model.model.language_model
    assert param_count(checkpoint.cfg) == sum(p.numel() for p in language.parameters())
    tokens, mask = rng.integers(0, 90, (2, 24)), np.ones((2, 24), bool)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), token_type_ids=torch.zeros(2, 24).long()).logits
    assert np.abs(our_logits(checkpoint, tokens, mask) - theirs.numpy()).max() <= 1e-4

    export_checkpoint(checkpoint.params, checkpoint.cfg, source, tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))
    assert convert.main(["from-hf", str(source), str(tmp_path / "native")]) == 0
    assert convert.main(["to-hf", str(tmp_path / "native"), str(tmp_path / "again")]) == 0
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(source))
    # The changed language model is where transformers expects it; vision weights are unchanged.
    changed = jax.tree.map(lambda leaf: leaf + 0.05, checkpoint.params)
    export_checkpoint(changed, checkpoint.cfg, source, tmp_path / "changed")
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "changed", attn_implementation="eager"
    )
    for name, parameter in loaded.named_parameters():
        moved = 0.05 if "language_model" in name else 0.0
        torch.testing.assert_close(parameter, model.get_parameter(name) + moved, rtol=0, atol=1e-7)


def test_sizes_that_a_multimodal_configuration_leaves_out_are_those_of_transformers():
    """The published checkpoints store only what differs from transformers' defaults."""
    text = {"hidden_size": 64, "num_hidden_layers": 7,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}  # fmt: skip
    table = family_of({"architectures": ["Gemma3ForConditionalGeneration"]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **text))
    cfg = table.from_hf({"text_config": text})
    assert param_count(cfg) == sum(p.numel() for p in model.parameters())
    assert cfg == table.from_hf({"text_config": model.config.to_dict()})
    assert table.from_hf(table.to_hf(cfg)) == cfg


def test_longrope_switches_by_each_rows_own_length(tmp_path, rng):
    """Sequences of both kinds give the same results in one batch as alone."""
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16,
               "max_position_embeddings": 64}  # fmt: skip
    checkpoint = load(random_model("phi3", **changes), tmp_path)
    tokens = rng.integers(0, SMALL["vocab_size"], (2, 24))
    mask = np.arange(24) >= np.array([[0], [12]])
    together = our_logits(checkpoint, tokens, mask)
    alone = our_logits(checkpoint, tokens[1:, 12:])
    np.testing.assert_allclose(together[1, 12:], alone[0], atol=1e-5)
    sampling = Sampling(temperature=0.0, stop_ids=(1,))
    with pytest.raises(UserError, match=r"12 tokens and up to 5 new ones cross position 16"):
        generate(
            checkpoint.params, [tokens[1, 12:].tolist()], cfg=checkpoint.cfg, sampling=sampling,
            key=jax.random.key(0), limits=[5],
        )  # fmt: skip


@pytest.mark.parametrize("original", [16, 64])
def test_longrope_decoding_equals_the_whole_forward_pass(original, tmp_path, rng):
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": original}
    model = random_model("phi3", **changes)
    checkpoint = load(model, tmp_path)
    prompt = rng.integers(3, 97, 17).tolist()
    ((ours,),) = generate(
        checkpoint.params, [prompt], cfg=checkpoint.cfg, key=jax.random.key(0), limits=[12],
        sampling=Sampling(temperature=0.0, stop_ids=(1,)),
    )  # fmt: skip
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=1,
            attention_mask=torch.ones(1, 17, dtype=torch.long),
        )  # fmt: skip
    assert ours == theirs[0, 17:].tolist()
