"""Adapters against peft and torch, and through whole runs."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from conftest import PEOPLE, edit, random_llama, slow_but
from jax.extend.core import jaxprs_in_params
from safetensors.torch import load_file, save_file
from test_families import BASES, multimodal_model, random_model
from test_sharding import on_eight_devices
from transformers import AutoModelForCausalLM

import convert.__main__ as convert
import pmc_jax as pmc
from convert.adapters import (
    adapter_at,
    factors_of,
    module_of,
    read_adapter,
    rows_in_layers,
    write_adapter,
)
from convert.directory import read_config
from convert.export import export_checkpoint
from convert.load import load_checkpoint
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.evaluation.likelihood import answer_losses
from pmc_jax.evaluation.relearning import relearn
from pmc_jax.language_model import ModelSource, load_language_model
from pmc_jax.model import decoding_params, forward, logits
from pmc_jax.model.products import Quantised, is_quantised, quantised
from pmc_jax.model.sequences import sequence_nll
from pmc_jax.model.trainable import INPUTS, LoRA, Trainable, dtypes_of, trainable
from pmc_jax.training import run as run_module
from pmc_jax.training.weights import split_weights

TOKENS = np.random.default_rng(5).integers(3, 90, (2, 11))


@pytest.fixture
def doubles():
    """Double precision."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def peft_model(directory: Path, seed: int = 0, **settings: Any) -> Any:
    """A peft model in float64 whose A and B are random."""
    base = AutoModelForCausalLM.from_pretrained(directory).double()
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


def torch_loss(model: Any, tokens: np.ndarray) -> Any:
    """The summed NLL of all tokens but the first."""
    ids = torch.tensor(tokens)
    scores = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1)
    return -scores.gather(-1, ids[:, 1:, None]).sum()


def loss_of(part: Trainable, base: Any, cfg: Any) -> Any:
    """The same as a function of the adapter."""
    segments = jnp.ones(TOKENS.shape, jnp.int32)

    def loss(adapter: Any) -> Any:
        weights = part.joined(adapter, base)
        nll = sequence_nll(weights, jnp.asarray(TOKENS), segments, cfg, jnp.float64, "none")
        return nll[:, 1:].sum()

    return loss


CASES = {
    "rank 1 of all": ({}, dict(r=1, lora_alpha=3, target_modules="all-linear")),
    "rslora of two": ({}, dict(r=4, lora_alpha=8, use_rslora=True,
                               target_modules=["q_proj", "down_proj"])),
    "tied embeddings": (dict(tie_word_embeddings=True),
                        dict(r=2, lora_alpha=2, target_modules=["o_proj", "gate_proj", "k_proj"])),
    "some layers": ({}, dict(r=3, lora_alpha=6, layers_to_transform=[1, 2],
                             target_modules=["v_proj", "up_proj"])),
}  # fmt: skip


@pytest.mark.usefixtures("double_llama")
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_peft(doubles, tmp_path, name):
    changes, settings = CASES[name]
    random_llama(std=0.3, **changes).save_pretrained(tmp_path / "model")
    theirs = peft_model(tmp_path / "model", **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    checkpoint = load_checkpoint(tmp_path / "model", dtype="float64")
    part = adapter_at(tmp_path / "adapter", tmp_path / "model")
    adapter = read_adapter(part, tmp_path / "model", "float64")
    _, base = part.split(checkpoint.params, "float64", donate=False)
    assert part.adapter.rank == settings["r"]
    value, gradients = jax.value_and_grad(loss_of(part, base, checkpoint.cfg))(adapter)
    expected = torch_loss(theirs, TOKENS)
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), abs=1e-10)
    _, family, cfg = read_config(tmp_path / "model")
    gradients = jax.device_get(gradients)
    found = {}
    for row in rows_in_layers(family):
        for layer in range(cfg.num_layers):
            pair = factors_of(part, gradients, row, layer)
            if pair is not None:
                for letter, value in zip("AB", pair, strict=True):
                    found[f"base_model.model.{module_of(row, layer)}.lora_{letter}.default"] = value
    wanted = {
        name.removesuffix(".weight"): parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert set(found) == set(wanted)
    for key, gradient in wanted.items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(found[key], gradient, rtol=0, atol=1e-8, err_msg=key)


# --- runs ------------------------------------------------------------------------------------

TRAINING = pmc.Training(epochs=2, batch_size=2, max_length=64)
OPTIMIZER = pmc.Optimizer(learning_rate=1e-2, schedule="constant")
METHODS = {
    "pmc": pmc.PMC(samples=3, max_new_tokens=8),
    "npo": pmc.NPO(retain_loss="kl"),
    "finetune": pmc.FineTune(),
}


@pytest.fixture(scope="module")
def data() -> pmc.Dataset:
    def row(person: str, city: str) -> dict[str, str]:
        return {"question": f"Where was {person} born?", "answer": f"{person} was born in {city}."}

    return pmc.Dataset.from_dicts(
        forget=[row(person, "Lisbon") for person in PEOPLE[:3]],
        retain=[row(person, "Oslo") for person in PEOPLE[3:]],
    )


def unlearn(model, data, method="pmc", **changes) -> pmc.Unlearned:
    settings = {
        "training": TRAINING,
        "optimizer": OPTIMIZER,
        "adapter": pmc.LoRA(rank=4),
        **changes,
    }
    return pmc.unlearn(model, data, METHODS[method], **settings)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def scores(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


def merged_in_peft(base: Path, adapter: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("method", slow_but(["pmc"], METHODS))
def test_a_run_exports_the_merged_model_and_the_adapter(
    method, tiny_model, data, checkpoint_dir, tmp_path, quick_compilation
):
    before = bits(tiny_model.params)
    result = unlearn(tiny_model, data, method, out=tmp_path / "run")
    assert bits(tiny_model.params) == before
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    theirs = merged_in_peft(checkpoint_dir, tmp_path / "run" / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(checkpoint_dir).eval()
    np.testing.assert_allclose(scores(merged), scores(theirs), rtol=0, atol=2e-5)
    assert np.abs(scores(merged) - scores(plain)).max() > 1e-2
    # checkpoints have the adapter and its moments, nothing of the base
    count = sum(leaf.size for leaf in jax.tree.leaves(result.adapter.params))
    stored = sum(
        path.stat().st_size for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()
    )
    assert count < 0.4 * sum(leaf.size for leaf in jax.tree.leaves(tiny_model.params))
    # two of them take less than one of all weights and their moments
    assert stored < 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_model.params))
    # the same call returns the finished run
    again = unlearn(tiny_model, data, method, out=tmp_path / "run")
    assert bits(again.adapter.params) == bits(result.adapter.params)
    # in memory the same, and the adapter on its own gives the model
    free = unlearn(tiny_model, data, method)
    assert bits(free.adapter.params) == bits(result.adapter.params)
    assert bits(free.model.params) == bits(result.model.params)
    dropped = tiny_model.with_adapter(tmp_path / "run" / "adapter")
    assert bits(dropped.params) == bits(result.model.params)


@pytest.mark.slow
def test_an_interrupted_run_continues_bit_for_bit(
    tiny_model, data, tmp_path, monkeypatch, quick_compilation
):
    whole = unlearn(tiny_model, data)

    class Killed(Exception):
        pass

    def kill(record):
        if record.step == 2:
            raise Killed

    checkpoints = pmc.CheckpointConfig(every=1)
    with pytest.raises(Killed):
        unlearn(tiny_model, data, out=tmp_path / "run", checkpoints=checkpoints, on_step=kill)
    steps = []
    again = unlearn(
        tiny_model, data, out=tmp_path / "run", checkpoints=checkpoints, on_step=steps.append
    )
    assert 0 < len(steps) < len(whole.steps)
    assert bits(again.adapter.params) == bits(whole.adapter.params)
    assert bits(again.model.params) == bits(whole.model.params)


@pytest.mark.slow
def test_only_the_chosen_weights_change(tiny_model, data, quick_compilation):
    chosen = dataclasses.replace(TRAINING, only=["layers.-2:.mlp", "layers.0.q"])
    found = unlearn(tiny_model, data, "npo", training=chosen, adapter=None).model.params
    for name, leaf in found["layers"].items():
        before = np.asarray(tiny_model.params["layers"][name])
        moved = [not np.array_equal(a, b) for a, b in zip(np.asarray(leaf), before, strict=True)]
        last = name in ("gate", "up", "down")
        assert moved == [name == "q", last, last], name
    for name in ("embed", "lm_head", "final_norm"):
        assert np.array_equal(found[name], tiny_model.params[name])


@pytest.mark.slow
def test_all_weights_as_a_part_are_trained_as_without(tiny_model, data, quick_compilation):
    """The same arithmetic by another way; XLA may fuse it differently."""
    plain = unlearn(tiny_model, data, "finetune", adapter=None)
    whole = dataclasses.replace(TRAINING, only="all")
    part = unlearn(tiny_model, data, "finetune", training=whole, adapter=None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4),
        part.model.params, plain.model.params,
    )  # fmt: skip


@pytest.mark.slow
def test_the_target_model_takes_no_memory_of_its_own(tiny_model, data, monkeypatch):
    """NPO with a KL retain loss reads the target model in every step: it is the base itself."""
    seen = {}
    real = run_module.train

    def noting(run, train_step, frozen, state, **options):
        held = {id(leaf): leaf for leaf in jax.tree.leaves((frozen, state.train))}
        seen["bytes"] = sum(leaf.nbytes for leaf in held.values())
        seen["trained"] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.train))
        own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny_model.params)}
        base = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen["base"])}
        seen["shared"] = base == own and frozen.get("params", {}) == {}
        return real(run, train_step, frozen, state, **options)

    monkeypatch.setattr(run_module, "train", noting)
    unlearn(tiny_model, data, "npo")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny_model.params))
    assert seen["shared"]
    assert seen["bytes"] == weights + seen["trained"]


def test_no_gradient_has_the_size_of_a_weight(tiny_model, doubles):
    """Nothing computes an array like a matrix, neither of all layers nor of one."""
    part = trainable(tiny_model.config, adapter=LoRA(rank=2))
    trained, frozen = split_weights(
        tiny_model, tiny_model.params, part, jax.random.key(0), donate=False
    )
    segments = jnp.ones(TOKENS.shape, jnp.int32)

    def loss(adapter):
        weights = part.joined(adapter, frozen["base"])
        return sequence_nll(
            weights, jnp.asarray(TOKENS), segments, tiny_model.config, "float32", "full"
        ).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(trained)
    shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(tiny_model.params["layers"])}
    matrices = {shape for shape in shapes if len(shape) > 2}
    matrices |= {shape[1:] for shape in matrices}

    def made(jaxpr):
        for equation in jaxpr.eqns:
            yield from (tuple(var.aval.shape) for var in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from made(inner)

    assert not matrices & set(made(jaxpr.jaxpr))


@pytest.mark.slow
@pytest.mark.parametrize("base_dtype", ["auto", "int8"])
def test_decoding_merged_or_on_the_fly_is_the_merged_model(base_dtype, tiny_model, doubles):
    """Greedy and sampled answers of all three are the same in float64."""
    model = load_language_model(
        ModelSource(str(tiny_model.directory), dtype="float64"), PromptConfig()
    )
    questions = [f"Where was {person} born?" for person in PEOPLE]
    answers = []
    for merge in (True, False, None):
        lora = LoRA(
            rank=3, targets=["q", "o", "down", "gate"], merge=bool(merge), base_dtype=base_dtype
        )
        part = trainable(model.config, adapter=lora)
        adapter = jax.tree.map(
            lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype),
            part.initial(jax.random.key(0), "float64"),
        )
        _, base = part.split(model.params, "float64", donate=False)
        joined = part.joined(adapter, base)
        dtypes = dtypes_of(model.params)
        weights = part.whole(adapter, base, dtypes, donate=False) if merge is None else joined
        decoding = decoding_params(weights, model.config, "float64")
        if merge is False:  # the base's own arrays
            pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(decoding)}
            assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(base)} <= pointers
        responses = generate(
            decoding, [model.template.encode_prompt(q) for q in questions], cfg=model.config,
            sampling=Sampling(temperature=1.0, stop_ids=model.template.stop_ids),
            key=jax.random.key(2), limits=[12] * len(questions), samples=4, dtype="float64",
        )  # fmt: skip
        answers.append(responses)
    assert answers[0] == answers[1] == answers[2]
    assert len({str(own) for own in answers[0]}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank=0: expected at least 1"),
        ({"alpha": 0.0}, "adapter.alpha=0.0: expected more than 0"),
        ({"base_dtype": "int4"}, "adapter.base_dtype=int4: expected one of auto, int8"),
        ({"targets": "q_proj"}, "adapter.targets=q_proj: matches no weight; the nearest is q; "),
        ({"targets": ["q", "embed"]}, "embeddings and the output matrix cannot have an adapter; "),
        ({"targets": "layers.7.q"}, "there is no such layer; expected 0 to 2, or a slice"),
        ({"targets": "layers.x.q"}, "expected layers.WHICH.NAME"),
        ({"targets": []}, "adapter.targets=[]: expected at least one pattern"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, message, tiny_model, data):
    with pytest.raises(UserError) as caught:
        unlearn(tiny_model, data, adapter=pmc.LoRA(**settings))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_or_a_part_but_not_both(tiny_model, data):
    training = dataclasses.replace(TRAINING, only="mlp")
    with pytest.raises(UserError, match="expected one of them"):
        unlearn(tiny_model, data, training=training)
    rmu = pmc.RMU()
    with pytest.raises(UserError, match=r"adapter.targets: selects none .* down"):
        pmc.unlearn(tiny_model, data, rmu, TRAINING, adapter=pmc.LoRA(targets="q"))


# --- meshes, families, several adapters ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [["adapter.merge=true"], ["adapter.merge=false"],
                ["adapter.merge=false", "adapter.base_dtype=int8"]],
)  # fmt: skip
def test_runs_are_the_same_on_every_layout(changes, tofu_dir, tmp_path):
    layouts = ("1x1", "4x2", "2x4", "8x1:1x8")
    settings = ("adapter=lora", *changes, "adapter.targets=[attention,down]")
    on_eight_devices("eight_device_runs.py", tmp_path, tofu_dir, *settings, *layouts)

    def read(name: str, file: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / "runs" / name.replace(":", "-") / file)

    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        expected = read("1x1", file)
        for layout in layouts[1:]:
            found = read(layout, file)
            assert set(found) == set(expected)
            for name, tensor in expected.items():
                np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-9, err_msg=layout)
    assert any(tensor.abs().max() > 1e-4 for name, tensor in expected.items())


@pytest.mark.parametrize("family", [*BASES, "gemma3"])
@pytest.mark.parametrize("targets", ["all", ["v", "layers.1:.up"]])
def test_adapters_of_every_family_load_in_peft(family, targets, tmp_path, rng):
    """The adapter in peft, and merged by us and loaded in transformers, gives the same logits."""
    theirs = multimodal_model() if family == "gemma3" else random_model(family)
    theirs.save_pretrained(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model")
    part = trainable(checkpoint.cfg, adapter=LoRA(rank=3, alpha=5, rslora=True, targets=targets))
    adapter = jax.tree.map(
        lambda spec: jnp.asarray(0.1 * rng.standard_normal(spec.shape), jnp.float32), part.specs
    )
    write_adapter(adapter, part, tmp_path / "model", tmp_path / "adapter")
    _, base = part.split(checkpoint.params, "float32", donate=False)
    merged = part.whole(adapter, base, dtypes_of(checkpoint.params), donate=False)
    export_checkpoint(merged, checkpoint.cfg, tmp_path / "model", tmp_path / "merged")

    kind = type(theirs)
    tokens, extra = torch.tensor(rng.integers(0, 90, (2, 24))), {}
    if family == "gemma3":
        extra = {"token_type_ids": torch.zeros_like(tokens)}
    with torch.no_grad():
        plain = theirs(tokens, **extra).logits
        expected = kind.from_pretrained(tmp_path / "merged").eval()(tokens, **extra).logits
        loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        found = loaded(input_ids=tokens, **extra).logits
    assert (plain - expected).abs().max() > 1e-2
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=2e-4)
    again = adapter_at(tmp_path / "adapter", tmp_path / "model")
    assert again.selection == part.selection
    assert bits(read_adapter(again, tmp_path / "model", "float32")) == bits(adapter)


ODD = {
    "another method": ({"peft_type": "IA3"}, "peft_type is IA3; expected LORA"),
    "no kind": ({"peft_type": None}, "peft_type is None; expected LORA"),
    "biases": ({"bias": "all"}, "bias is all; expected none"),
    "rank a text": ({"r": "2"}, "r is 2 and lora_alpha 3; expected positive numbers"),
    "no rank": ({"r": 0}, "r is 0 and lora_alpha 3; expected positive numbers"),
    "another rank": ({"r": 3}, "has rank 2 and alpha 3; expected 3 and 3 as in all modules"),
    "alpha a switch": ({"lora_alpha": True}, "lora_alpha True; expected positive numbers"),
    "no float": ({"lora_alpha": 10**400}, "expected positive numbers"),
    "alpha of a module": (
        {"alpha_pattern": {"q_proj": 6}}, "has rank 2 and alpha 6; expected 2 and 3",
    ),
    "the same alpha": ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3.0}}, None),
    "alpha of another module": ({"alpha_pattern": {"proj": 6, "1.q_proj": 6}}, None),
    "a slow expression": (
        {"rank_pattern": {"(.*)*x": 2}}, "rank_pattern has (.*)*x: 2; expected a module's name",
    ),
    "a pattern for a text": ({"alpha_pattern": {"q_proj": "3"}}, "and a positive number"),
    "a list": ({"rank_pattern": [2]}, "rank_pattern is a list; expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_configurations_of_adapters_are_one_line(odd, checkpoint_dir, tmp_path):
    changes, message = ODD[odd]
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
    peft_model(checkpoint_dir, **settings).save_pretrained(tmp_path)
    edit(tmp_path / "adapter_config.json", **changes)
    if message is None:
        assert adapter_at(tmp_path, checkpoint_dir).adapter.rank == 2
        return
    with pytest.raises(UserError) as caught:
        adapter_at(tmp_path, checkpoint_dir)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_adapters_of_embeddings_are_refused_in_one_line(module, checkpoint_dir, tmp_path):
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", module]}
    peft_model(checkpoint_dir, **settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=module) as caught:
        adapter_at(tmp_path, checkpoint_dir)
    assert "\n" not in str(caught.value) and "another model" not in str(caught.value)


def test_factors_that_are_no_matrices_are_one_line(checkpoint_dir, tmp_path):
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
    peft_model(checkpoint_dir, **settings).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name].reshape(-1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"{name} has the shape \[\d+\]; expected a matrix"):
        adapter_at(tmp_path, checkpoint_dir)


@pytest.mark.slow
def test_a_base_in_a_lower_precision_changes_no_result(tiny_model):
    """Matrices that bfloat16 holds exactly are kept in it; the others stay as they are."""
    key = jax.random.key(0)
    exact = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), tiny_model.params)
    rough = exact["layers"]["q"] + 1e-6 * jax.random.normal(key, exact["layers"]["q"].shape)
    params = {**exact, "layers": {**exact["layers"], "q": rough}}
    part = trainable(tiny_model.config, adapter=LoRA(rank=2))
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, part.initial(key, "float32"))
    _, base = part.split(params, "bfloat16", donate=False)
    kept = {name: leaf.dtype for name, leaf in base["layers"].items()}
    assert kept["q"] == kept["attn_norm"] == "float32" and kept["up"] == "bfloat16"
    tokens = jax.random.randint(key, (2, 9), 0, tiny_model.config.vocab_size)

    def loss(adapter, base):
        weights = part.joined(adapter, base)
        return sequence_nll(
            weights, tokens, jnp.ones_like(tokens), tiny_model.config, jnp.bfloat16, "none"
        ).mean()

    ours, theirs = (jax.value_and_grad(loss)(adapter, own) for own in (base, params))
    assert bits(ours) == bits(theirs)


@pytest.mark.slow
def test_an_adapter_of_peft_is_a_start(tiny_model, data, checkpoint_dir, tmp_path):
    """With learning rate 0 the run ends where peft began; the target model has the adapter, too."""
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"]}
    theirs = peft_model(checkpoint_dir, **settings).float()
    theirs.save_pretrained(tmp_path / "start")
    adapter = pmc.LoRA(rank=2, alpha=3, targets=["q", "up"], path=str(tmp_path / "start"))
    still = pmc.Optimizer(learning_rate=0.0)
    method = pmc.NPO(retain_loss="kl")
    result = pmc.unlearn(tiny_model, data, method, TRAINING, still, adapter=adapter)
    assert result.steps[0].retain_loss == pytest.approx(0, abs=1e-6)
    result.model.save(tmp_path / "model")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    np.testing.assert_allclose(scores(ours), scores(theirs.eval()), rtol=0, atol=2e-5)

    def refused(message: str, **changes: Any) -> None:
        other = dataclasses.replace(adapter, **changes)
        with pytest.raises(UserError, match=message):
            pmc.unlearn(tiny_model, data, method, TRAINING, still, adapter=other)

    refused("adapter.rank=3: .* has 2; expected adapter.rank=2 adapter.alpha=3", rank=3)
    refused("adapter.targets: .* has adapters of q, up; .* not q$", targets="q")
    random_llama(hidden_size=24, vocab_size=400).save_pretrained(tmp_path / "wide")
    peft_model(tmp_path / "wide", **settings).save_pretrained(tmp_path / "foreign")
    refused("the adapter is for another model: model.layers.0", path=str(tmp_path / "foreign"))
    edit(tmp_path / "start" / "adapter_config.json", use_dora=True)
    refused("use_dora is True; expected False")


@pytest.mark.slow
def test_a_second_adapter_on_a_first_and_the_first_dropped(
    tiny_model, data, checkpoint_dir, tmp_path, quick_compilation
):
    first = unlearn(tiny_model, data, "finetune", out=tmp_path / "first")
    second = unlearn(first.model, data, "npo", out=tmp_path / "second")
    both = [str(tmp_path / name / "adapter") for name in ("first", "second")]
    assert convert.main(["merge", str(checkpoint_dir), str(tmp_path / "both"), *both]) == 0
    assert convert.main(["merge", str(checkpoint_dir), str(tmp_path / "one"), both[1]]) == 0
    merged, one = pmc.load_model(tmp_path / "both"), pmc.load_model(tmp_path / "one")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        (merged.params, one.params),
        (second.model.params, tiny_model.with_adapter(both[1]).params),
    )
    changes = [
        np.asarray(new["layers"]["q"]) - np.asarray(old["layers"]["q"])
        for new, old in (
            (one.params, tiny_model.params), (second.model.params, first.model.params)
        )
    ]  # fmt: skip
    np.testing.assert_allclose(*changes, rtol=0, atol=1e-6)
    assert np.abs(changes[0]).max() > 1e-3


@pytest.mark.slow
def test_relearning_trains_an_adapter(tiny_model):
    """With the same rate it learns; the weights change by matrices of its rank."""
    pairs = [([0, 5, 9, 11], [20, 21, 22, 1]), ([0, 7], [30, 1])]
    models = relearn(
        tiny_model, pairs, (0, 6), batch_size=2, learning_rate=1e-2, seed=3, adapter=LoRA(rank=2)
    )
    losses = []
    for _, model in models:
        losses.append(answer_losses(model, pairs).mean())
        change = np.asarray(model.params["layers"]["up"] - tiny_model.params["layers"]["up"])
    assert losses[1] < losses[0] - 0.1
    values = np.linalg.svd(change, compute_uv=False)
    assert (values[:, 1] > 1e-3).all() and (values[:, 2] < 1e-5).all()


# --- quantised bases, and weights as their files have them -------------------------------------


def dequantised(tree: Any) -> Any:
    """A base whose quantised weights are plain ones."""
    return jax.tree.map(
        lambda leaf: leaf.astype("float64") if is_quantised(leaf) else leaf, tree,
        is_leaf=is_quantised,
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "inputs"), [((2, 8, 3, 4), 1), ((2, 3, 4, 8), 2)])
def test_weights_are_quantised_as_in_torch(shape, inputs, rng):
    """One scale for each output channel of each layer; a channel of zeros stays one."""
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[0, ..., 0] = 0
    found = quantised(jnp.asarray(weight), tuple(range(1, 1 + inputs)))
    assert found.values.dtype == jnp.int8 and found.values.shape == shape
    outputs = int(np.prod(shape[1 + inputs :]))
    for layer in range(shape[0]):
        rows = torch.tensor(weight[layer].reshape(-1, outputs).T)  # [outputs, inputs]
        scales = torch.tensor(np.asarray(found.scales[layer]).reshape(-1))
        torch.testing.assert_close(scales, rows.abs().amax(1) / 127, rtol=2e-7, atol=0)
        safe = torch.where(scales > 0, scales, torch.ones(()))
        theirs = torch.quantize_per_channel(
            rows, safe, torch.zeros(outputs), axis=0, dtype=torch.qint8
        )
        ours = np.asarray(found.values[layer]).reshape(-1, outputs).T
        np.testing.assert_array_equal(ours, theirs.int_repr().numpy())
        whole = np.asarray(found.astype("float32")[layer]).reshape(-1, outputs).T
        np.testing.assert_allclose(whole, theirs.dequantize().numpy(), rtol=1e-6)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_beside_a_quantised_base(remat, tiny_model, doubles):
    """Loss and gradients are those of autodiff with the dequantised weights."""
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), tiny_model.params)
    cfg, segments = tiny_model.config, jnp.ones(TOKENS.shape, jnp.int32)
    part = trainable(cfg, adapter=LoRA(rank=3, targets=["attention", "down"], base_dtype="int8"))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, part.initial(jax.random.key(0), "float64"))
    _, base = part.split(params, "float64", donate=False)
    assert {name for name, leaf in base["layers"].items() if is_quantised(leaf)} == {*INPUTS}

    def loss(adapter, base):
        weights = part.joined(adapter, base)
        return sequence_nll(weights, jnp.asarray(TOKENS), segments, cfg, "float64", remat).sum()

    ours, theirs = (jax.value_and_grad(loss)(adapter, own) for own in (base, dequantised(base)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), ours, theirs)
    assert abs(loss(adapter, params) - ours[0]) > 1e-4
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(ours[1])) > 1e-3


@pytest.mark.parametrize("family", slow_but(["phi"], BASES))
def test_quantised_weights_of_every_family(family, tmp_path, doubles):
    """Logits are those of the dequantised weights, and near those of the model's own."""
    random_model(family).save_pretrained(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model", dtype="float64")
    part = trainable(checkpoint.cfg, adapter=LoRA(targets="q", base_dtype="int8"))
    _, base = part.split(checkpoint.params, "float64", donate=False)
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    segments, cfg = jnp.ones(TOKENS.shape, jnp.int32), checkpoint.cfg

    def scores(params):
        x = forward(params, jnp.asarray(TOKENS), positions, segments, cfg, dtype="float64")
        return logits(params, x, cfg)

    ours, exact, own = map(scores, (base, dequantised(base), checkpoint.params))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-10)
    error = np.sqrt(np.mean((ours - own) ** 2) / np.mean(np.square(own)))
    assert 1e-5 < error < 0.1


@pytest.mark.slow
def test_a_run_beside_a_quantised_base(tiny_model, data, monkeypatch, quick_compilation):
    """The base is in memory as integers, and the exported model has them dequantised."""
    seen = {}
    real = run_module.train

    def noting(run, train_step, frozen, state, **options):
        seen["base"] = frozen["base"]
        return real(run, train_step, frozen, state, **options)

    monkeypatch.setattr(run_module, "train", noting)
    adapter = pmc.LoRA(rank=2, merge=False, base_dtype="int8")
    still = pmc.Optimizer(learning_rate=0.0)
    found = unlearn(tiny_model, data, adapter=adapter, optimizer=still)
    base = seen["base"]["layers"]
    for name in INPUTS:
        leaf = np.asarray(tiny_model.params["layers"][name])
        inputs = tuple(range(1, 1 + INPUTS[name]))
        scales = np.abs(leaf).max(inputs, keepdims=True) / 127
        assert isinstance(base[name], Quantised)
        np.testing.assert_array_equal(base[name].values, np.round(leaf / scales))
        expected = np.round(leaf / scales) * scales
        np.testing.assert_allclose(found.model.params["layers"][name], expected, atol=1e-7)
    assert np.array_equal(found.model.params["embed"], tiny_model.params["embed"])


@pytest.fixture
def narrow_and_wide(tiny_model, tmp_path):
    """A model whose files are in bfloat16, as they are and in float32."""
    export_checkpoint(
        tiny_model.params, tiny_model.config, tiny_model.directory, tmp_path / "model", "bfloat16"
    )
    return [pmc.load_model(tmp_path / "model", as_stored=own) for own in (True, False)]


def test_weights_in_the_dtype_of_their_files(narrow_and_wide, data):
    """They answer as the same weights in float32, but cannot be trained."""
    narrow, wide = narrow_and_wide
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide.params)} == {"float32"}
    questions = [f"Where was {person} born?" for person in PEOPLE]
    assert narrow.generate(questions, temperature=0) == wide.generate(questions, temperature=0)
    with pytest.raises(UserError, match=r"without as_stored, or an adapter$"):
        unlearn(narrow, data, adapter=None)


@pytest.mark.slow
def test_an_adapter_beside_weights_in_the_dtype_of_their_files(
    narrow_and_wide, data, quick_compilation
):
    """It is the one beside the same weights in float32, and the merged model, too."""
    ours, theirs = (unlearn(model, data, "finetune") for model in narrow_and_wide)
    assert bits(ours.adapter.params) == bits(theirs.adapter.params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours.model.params)} == {"bfloat16"}
    assert bits(ours.model.params) == bits(
        jax.tree.map(lambda leaf: leaf.astype("bfloat16"), theirs.model.params)
    )
