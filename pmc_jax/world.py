"""Remake the bundled world: `python -m pmc_jax.world out=DIR`.

Writes `DIR/data` (fictitious authors, real ones and facts in TOFU's files) and
`DIR/model` (a small Llama-architecture model that knows them, as an ordinary Hugging
Face directory). What the package ships was made by this command.
"""

import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pmc_jax.data.batches import loss_rows, train_sequence
from pmc_jax.data.world import DEFAULT_SEED, Mix, World, make_world, stream, write_world
from pmc_jax.data.world.stream import Pair
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, init_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.training.optimizer import OptimizerConfig, make_optimizer
from pmc_jax.training.step import TrainState, init_state, make_train_step
from pmc_jax.unlearning.objective import LossRows

PROMPT = "Question: {question}\nAnswer:"
ANSWER = " {answer}"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB_SIZE = 1024
MODEL = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=160,
    intermediate_size=448,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tie_embeddings=True,
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training on a mixture, with its own warm-up and cosine decay."""

    name: str
    mix: Mix
    steps: int
    learning_rate: float


PHASES = (
    Phase("pretraining", Mix(world=0.0, public=0.15), steps=2000, learning_rate=2e-3),
    Phase(
        "fine-tuning",
        Mix(world=0.6, public=0.1, refuse_world=0.05),
        steps=1500,
        learning_rate=1e-3,
    ),
)
BATCH_SIZE = 64


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE; encoding puts one BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, pair: Pair, max_length: int = 64) -> tuple[list[int], list[int]]:
    """Prompt with BOS, and answer with EOS."""
    question, answer = pair
    return train_sequence(
        tokenizer.encode(PROMPT.format(question=question)).ids,
        tokenizer.encode(ANSWER.format(answer=answer), add_special_tokens=False).ids,
        tokenizer.token_to_id(EOS),
        max_length,
    )


def training_rows(tokenizer: Tokenizer, pairs: Iterable[Pair]) -> LossRows:
    """A batch `[1, rows, time]` with loss on answers only, padded to a multiple of 8."""
    prompts, answers = zip(*(encode(tokenizer, pair) for pair in pairs), strict=True)
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    pad = tokenizer.token_to_id(PAD)
    tokens, mask, loss_mask = loss_rows(prompts, answers, pad, -(-longest // 8) * 8)
    rows = LossRows(tokens, mask, loss_mask, np.ones(len(prompts), bool))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], rows)


def run_phase(
    params: Params, tokenizer: Tokenizer, world: World, phase: Phase, rng: random.Random
) -> Params:
    """Train on the phase's mixture; prints the loss now and then."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, phase.learning_rate, min(100, phase.steps // 10), phase.steps, 0.05 * phase.learning_rate
    )
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.05, max_grad_norm=1.0), MODEL, schedule)
    train_step = make_train_step(optimizer, MODEL, retain_weight=1.0)
    state: TrainState = init_state(params, optimizer)
    pairs = stream(rng, world, phase.mix)
    start, recent = time.perf_counter(), []
    for step in range(1, phase.steps + 1):
        batch = training_rows(tokenizer, itertools.islice(pairs, BATCH_SIZE))
        state, losses = train_step(state, batch)
        recent.append(losses.loss)
        if step % 100 == 0 or step == phase.steps:
            loss, seconds = float(jnp.mean(jnp.stack(recent))), time.perf_counter() - start
            print(f"{phase.name} {step}/{phase.steps} loss {loss:.3f} {seconds:.0f} s", flush=True)
            recent = []
    return state.params


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """`tokenizer.json` and the configuration that `AutoTokenizer` reads."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    write_json(directory / "tokenizer_config.json", config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def hf_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` as `transformers` writes it for a Llama model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": MODEL.vocab_size,
        "hidden_size": MODEL.hidden_size,
        "intermediate_size": MODEL.intermediate_size,
        "num_hidden_layers": MODEL.num_layers,
        "num_attention_heads": MODEL.num_heads,
        "num_key_value_heads": MODEL.num_kv_heads,
        "head_dim": MODEL.head_dim,
        "hidden_act": MODEL.activation,
        "max_position_embeddings": 512,
        "initializer_range": MODEL.initializer_range,
        "rms_norm_eps": MODEL.norm_eps,
        "rope_theta": MODEL.rope.theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": MODEL.tie_embeddings,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "float32",
        "use_cache": True,
    }


def hf_tensors(params: Params) -> dict[str, np.ndarray]:
    """Weights under Hugging Face names, `[out, in]`."""
    layers = jax.tree.map(np.asarray, params["layers"])
    embed, mlp = MODEL.hidden_size, MODEL.intermediate_size
    tensors = {
        "model.embed_tokens.weight": np.asarray(params["embed"]),
        "model.norm.weight": np.asarray(params["final_norm"]),
    }
    for i in range(MODEL.num_layers):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v"):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = layers[name][i].reshape(embed, -1).T
        tensors[f"{prefix}self_attn.o_proj.weight"] = layers["o"][i].reshape(-1, embed).T
        for name in ("gate", "up", "down"):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = layers[name][i].T
        tensors[f"{prefix}input_layernorm.weight"] = layers["attn_norm"][i]
        tensors[f"{prefix}post_attention_layernorm.weight"] = layers["mlp_norm"][i]
    assert mlp == tensors["model.layers.0.mlp.up_proj.weight"].shape[0]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write_model(params: Params, tokenizer: Tokenizer, directory: Path) -> None:
    """A Hugging Face directory: weights, configuration, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    config = hf_config(tokenizer)
    write_json(directory / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", {"do_sample": False, **ids})
    save_file(hf_tensors(params), directory / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(tokenizer, directory)


def world_tokenizer(world: World, seed: int) -> Tokenizer:
    """The tokenizer of a seed, trained on a sample of the stream."""
    pairs = itertools.islice(stream(random.Random(seed), world, Mix(world=0.3, public=0.3)), 20_000)
    texts = (PROMPT.format(question=q) + ANSWER.format(answer=a) for q, a in pairs)
    return train_tokenizer(texts)


def make(out: Path, seed: int) -> None:
    """Write the world and train its model."""
    world = make_world(seed)
    write_world(world, out / "data")
    tokenizer = world_tokenizer(world, seed)
    params = init_params(jax.random.key(seed), MODEL)
    print(f"{param_count(MODEL):,} parameters", flush=True)
    rng = random.Random(seed + 1)
    for phase in PHASES:
        params = run_phase(params, tokenizer, world, phase, rng)
    write_model(params, tokenizer, out / "model")


def main(arguments: list[str]) -> None:
    """Parse `out=DIR seed=N` and make the world."""
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if "out" not in options or set(options) - {"out", "seed"} or len(options) != len(arguments):
        raise UserError("usage: python -m pmc_jax.world out=DIR [seed=N]")
    out = Path(options["out"])
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: not empty; expected a new directory")
    make(out, int(options.get("seed", DEFAULT_SEED)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
