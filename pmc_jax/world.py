"""Make the bundled world and its model again: `pmc world`.

Writes `DIR/data` (fictitious authors, real people and facts in TOFU's file format) and
`DIR/model` (a Hugging Face directory with a small Llama model that knows them). The package
contains the output of this command.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from convert.export import write_checkpoint
from pmc_jax.cli.config import WorldConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data.files import read_json, write_json
from pmc_jax.data.prompt_config import DEFAULT_PROMPT, PromptConfig, prompt_content
from pmc_jax.data.prompts import PromptTemplate, make_template
from pmc_jax.data.world import Mix, World, make_world, stream, write_world
from pmc_jax.data.world.stream import Pair
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, init_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.training.batch import Batch, pair_batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import TrainState, init_state, make_train_step
from pmc_jax.unlearning.baselines.finetune import FineTune

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL_NAMES = ("bos", "eos", "pad")
MAX_POSITIONS = 512
TOKENIZER_PAIRS = 20_000
MODEL = ModelConfig(
    vocab_size=1024,
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
    """A part of training on one mixture of data, with its own warm-up and cosine decay."""

    name: str
    mix: Mix
    steps: int
    learning_rate: float


PHASES = (
    Phase("pretraining", Mix(world=0.0, public=0.15, recluses=0.2), steps=1500, learning_rate=2e-3),
    Phase(
        "fine-tuning",
        Mix(world=0.6, public=0.1, recluses=0.1, refuse_world=0.05),
        steps=1200,
        learning_rate=1e-3,
    ),
)
BATCH_SIZE = 64
LENGTH_STEP = 8
"""Batches are padded to a multiple of this, so that few shapes are compiled."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds one BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def world_tokenizer(world: World, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a sample of the stream of question-answer pairs."""
    pairs = stream(random.Random(seed), world, Mix(world=0.3, public=0.3))
    prompt = prompt_content(DEFAULT_PROMPT)
    return train_tokenizer(
        prompt["question"].format(question=question) + prompt["answer"].format(answer=answer)
        for question, answer in itertools.islice(pairs, TOKENIZER_PAIRS)
    )


def training_batch(template: PromptTemplate, pairs: Iterable[Pair]) -> Batch:
    """A batch `[1, pairs, time]` with loss on answers only."""
    encoded = [template.encode_pair(question, answer) for question, answer in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
    return pair_batch(encoded, -(-longest // LENGTH_STEP) * LENGTH_STEP)


def run_phase(
    params: Params, template: PromptTemplate, world: World, phase: Phase, rng: random.Random
) -> Params:
    """Train on the phase's mixture and print the loss every 100 steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        phase.learning_rate,
        min(100, phase.steps // 10),
        phase.steps,
        0.05 * phase.learning_rate,
    )
    optimizer = make_optimizer(Optimizer(weight_decay=0.05, max_grad_norm=1.0), MODEL, schedule)
    train_step = make_train_step(optimizer, FineTune(), MODEL)
    state: TrainState = init_state(params, optimizer)
    pairs = stream(rng, world, phase.mix)
    start, recent = time.perf_counter(), []
    for step in range(1, phase.steps + 1):
        batch = training_batch(template, itertools.islice(pairs, BATCH_SIZE))
        state, losses, _ = train_step(state, batch, 0.0, {})
        recent.append(losses.loss)
        if step % 100 == 0 or step == phase.steps:
            loss, seconds = float(jnp.mean(jnp.stack(recent))), time.perf_counter() - start
            print(f"{phase.name} {step}/{phase.steps} loss {loss:.3f} {seconds:.0f} s", flush=True)
            recent = []
    return state.params


def write_model(params: Params, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a Hugging Face directory: weights, configuration files and tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_NAMES}
    config = {"max_position_embeddings": MAX_POSITIONS, **ids}
    write_checkpoint(params, MODEL, directory, config=config, tokenizer=tokenizer)
    write_json(directory / "generation_config.json", {"do_sample": False, **ids})
    # transformers 5 writes a class name that older versions do not know.
    path = directory / "tokenizer_config.json"
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})


def make(out: Path, seed: int) -> None:
    """Write the data of a seed, train the model on it, and write that, too."""
    world = make_world(seed)
    write_world(world, out / "data")
    tokenizer = world_tokenizer(world, seed)
    template = make_template(tokenizer, PromptConfig())
    params = init_params(jax.random.key(seed), MODEL)
    print(f"{param_count(MODEL):,} parameters", flush=True)
    rng = random.Random(seed + 1)
    for phase in PHASES:
        params = run_phase(params, template, world, phase, rng)
    write_model(params, tokenizer, out / "model")


def world(config: WorldConfig) -> None:
    """Make the world in a new directory.

    Raises:
        UserError: if the directory holds something already.
    """
    directory = Path(config.out).expanduser()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"out={config.out}: not empty; expected a new or empty directory")
    make(directory, config.seed)


# The shipped model was compiled with XLA's own settings.
main = entry_point(world, "world", WorldConfig, compile_sooner=False)

if __name__ == "__main__":
    main()
