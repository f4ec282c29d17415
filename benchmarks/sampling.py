"""Sampling compared with `transformers`: `python benchmarks/sampling.py [--models 1M-4k …]`.

Two comparisons on the same weights, prompts and settings, in one process and in alternation:

- raw decoding: 16 prompts, 10 samples each, the same number of tokens for all, no stop ids, on
  random models;
- the selected responses of one optimizer step: 16 questions to the bundled model, which knows the
  answers by heart, with 20 samples each, until the one response per question that PMC remembers is
  found. The other side is `generate`, with every sample scored by `rouge_score`.

The bound is the time that the matrix products and the memory traffic of the same work would take at
the rates of a large product and a large copy. These rates are the best of several measurements at
the start. A shared machine is not always as fast, so rates measured in turn with the decoding give
a second share (the median).
"""

import os

# Idle threads of one library must not take cores from the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from convert.load import load_checkpoint
from pmc_jax.api import load_model
from pmc_jax.data import DataConfig, load_dataset
from pmc_jax.data.files import to_json
from pmc_jax.decoding import Decoding, Sampling, generate
from pmc_jax.model import ModelConfig, decoding_params, param_count
from pmc_jax.model.specs import Params
from pmc_jax.training.run import prepare_inputs
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.pmc import PMC, ResponseMemory
from pmc_jax.unlearning.pmc.sampling import sample_responses
from pmc_jax.unlearning.pmc.step import remember_best, score_samples
from pmc_jax.unlearning.schedule import Training

MODELS = {
    "1M-4k": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 4096},
    "7M-4k": {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 4096},
    "10M-32k": {"hidden_size": 192, "num_hidden_layers": 8, "vocab_size": 32_768},
    "45M-32k": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 32_768},
    "155M-128k": {"hidden_size": 768, "num_hidden_layers": 8, "vocab_size": 128_256},
}
PROMPTS, PROMPT_TOKENS, SAMPLES, TOKENS = 16, 24, 10, 32
TEMPERATURE, TOP_K, TOP_P = 0.9, 50, 0.95
QUESTIONS, STEP_SAMPLES, ANSWER_TOKENS = 16, 20, 40
PRODUCT_SIZE, COPIED_FLOATS = 2048, 1 << 27


def shape_of(name: str) -> ModelConfig:
    """The shape of the random model with this name."""
    shape = MODELS[name]
    hidden = shape["hidden_size"]
    return ModelConfig(
        vocab_size=shape["vocab_size"], hidden_size=hidden, intermediate_size=4 * hidden,
        num_layers=shape["num_hidden_layers"], num_heads=8, num_kv_heads=8,
        head_dim=hidden // 8, tie_embeddings=True,
    )  # fmt: skip


def median(seconds: Sequence[float]) -> float:
    """The median as a plain number, for JSON."""
    return float(np.median(seconds))


def timed(work: Callable[[int], Any], repetition: int) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work(repetition)
    return time.perf_counter() - started


def alternate(works: dict[str, Callable[[int], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each work, called in turn; the first call of each is not counted."""
    for work in works.values():
        work(0)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(1, repetitions + 1):
        for name, work in works.items():
            seconds[name].append(timed(work, repetition))
    return seconds


def ceiling_works() -> dict[str, Callable[[int], Any]]:
    """A large float32 product by each library, and a large copy."""
    a = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)
    t = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE)
    source, target = np.ones(COPIED_FLOATS, np.float32), np.empty(COPIED_FLOATS, np.float32)
    return {
        "jax product": lambda _: product(a, a).block_until_ready(),
        "torch product": lambda _: t @ t,
        "copy": lambda _: np.copyto(target, source),
    }


def rates(seconds: dict[str, float]) -> dict[str, float]:
    """FLOP/s of the faster library's product and bytes/s of the copy."""
    product = min(seconds[f"{library} product"] for library in ("jax", "torch"))
    size = COPIED_FLOATS * np.dtype(np.float32).itemsize
    return {"flops": 2 * PRODUCT_SIZE**3 / product, "bytes": 2 * size / seconds["copy"]}


def bound_seconds(cfg: ModelConfig, found: dict[str, float]) -> float:
    """Least time of prefill and decoding in the raw comparison, at the measured rates.

    Counts matrix products and attention. Memory traffic is the weights, the written part of the
    cache, and one reading and one writing of the logits.
    """
    rows, item = PROMPTS * SAMPLES, 4
    embed = cfg.vocab_size * cfg.hidden_size
    layers = param_count(cfg) - embed * (1 if cfg.tie_embeddings else 2)

    def least(flops: float, size: float) -> float:
        return max(flops / found["flops"], size / found["bytes"])

    def attention(queries: float, keys: float) -> float:
        return 4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * queries * keys

    prompt = PROMPTS * PROMPT_TOKENS
    total = least(2 * layers * prompt + attention(prompt, PROMPT_TOKENS / 2), layers * item)
    per_key = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * item
    for token in range(TOKENS):
        fed = rows if token else 0
        flops = 2 * layers * fed + attention(fed, PROMPT_TOKENS + token)
        flops += 2 * embed * (rows if token else PROMPTS)
        cache = per_key * (PROMPTS * PROMPT_TOKENS + rows * token)
        total += least(flops, (layers + embed) * item + cache + 2 * rows * cfg.vocab_size * item)
    return total


def raw(name: str, repetitions: int, found: dict[str, float]) -> dict[str, Any]:
    """Tokens per second of one random model, ours and theirs."""
    shape = MODELS[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, intermediate_size=4 * shape["hidden_size"], num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        ours = load_checkpoint(directory)
    params = decoding_params(ours.params, ours.cfg, "float32")
    prompts = np.random.default_rng(0).integers(2, shape["vocab_size"], (PROMPTS, PROMPT_TOKENS))
    ids = torch.tensor(prompts)

    def decode(repetition: int) -> None:
        rows = generate(
            params, prompts.tolist(), cfg=ours.cfg,
            sampling=Sampling(TEMPERATURE, TOP_K, TOP_P), key=jax.random.key(repetition),
            limits=[TOKENS] * PROMPTS, samples=SAMPLES,
            decoding=Decoding(chunk=TOKENS),
        )  # fmt: skip
        assert sum(len(row) for group in rows for row in group) == PROMPTS * SAMPLES * TOKENS

    @torch.no_grad()
    def decode_theirs(repetition: int) -> None:
        torch.manual_seed(repetition)
        rows = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE,
            top_k=TOP_K, top_p=TOP_P, num_return_sequences=SAMPLES, max_new_tokens=TOKENS,
        )  # fmt: skip
        assert rows.shape == (PROMPTS * SAMPLES, PROMPT_TOKENS + TOKENS)

    works = {"pmc_jax": decode, "transformers": decode_theirs, **ceiling_works()}
    seconds = alternate(works, repetitions)
    in_turn = [
        rates({name: found[i] for name, found in seconds.items()}) for i in range(repetitions)
    ]
    shares = [
        bound_seconds(ours.cfg, now) / own
        for now, own in zip(in_turn, seconds["pmc_jax"], strict=True)
    ]
    tokens = PROMPTS * SAMPLES * TOKENS
    ours_median, theirs_median = (median(seconds[name]) for name in ("pmc_jax", "transformers"))
    return {
        "parameters": param_count(ours.cfg),
        "vocabulary": shape["vocab_size"],
        "seconds": seconds,
        "tokens_per_second": {
            "pmc_jax": tokens / ours_median,
            "transformers": tokens / theirs_median,
        },
        "ratio": theirs_median / ours_median,
        "share_of_bound": bound_seconds(ours.cfg, found) / ours_median,
        "ceilings_in_turn": {
            name: median([now[name] for now in in_turn]) for name in ("flops", "bytes")
        },
        "share_in_turn": median(shares),
    }


def demo_run(samples: int, training: Training) -> tuple[Run[PMC], Params]:
    """PMC on the bundled model and data, before its first step, and the weights."""
    model = load_model()
    data = DataConfig(path="bundled", forget="forget10", retain="retain90", retain_rows=None)
    pmc = PMC(
        samples=samples, temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P,
        max_new_tokens=ANSWER_TOKENS, min_len=0,
    )  # fmt: skip
    inputs = prepare_inputs(model, load_dataset(data), pmc, training, seed=0)
    prepared = pmc.prepare(inputs.task, inputs.examples, model.params)
    return Run(pmc, inputs.task, inputs.examples, prepared), model.params


def selected(
    run: Run[PMC], memory: ResponseMemory, params: Params, questions: Sequence[int], step: int
) -> None:
    """Find the selected responses of one step in our way."""
    samples = sample_responses(run, memory, params, step, questions)
    scores = score_samples(run, questions, samples)
    remember_best(run, memory, step, questions, samples, scores)


def step_comparison(repetitions: int) -> dict[str, Any]:
    """Seconds to the selected responses of one optimizer step, for each way to do it."""
    training = Training(batch_size=QUESTIONS, max_length=96)
    run, params = demo_run(STEP_SAMPLES, training)
    questions = list(range(QUESTIONS))
    memory = run.method.initial_state(run.task)
    variants = {
        "pmc_jax, nothing saved": {
            "prune": False,
            "compact": False,
            "grow_cache": False,
            "chunk": 40,
        },
        "pmc_jax": {},
        "pmc_jax, waves of 5": {"wave": 5},
    }
    works: dict[str, Callable[[int], Any]] = {}
    for name, changes in variants.items():
        task = dataclasses.replace(run.task, training=dataclasses.replace(training, **changes))
        changed = dataclasses.replace(run, task=task)
        works[name] = lambda step, changed=changed: selected(
            changed, memory, params, questions, step
        )

    model = AutoModelForCausalLM.from_pretrained(run.task.model.directory).eval()
    template, originals = run.task.model.template, run.prepared["originals"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    prompts = [run.task.prompts[i] for i in questions]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    @torch.no_grad()
    def theirs(repetition: int) -> list[str]:
        torch.manual_seed(repetition)
        rows = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K,
            top_p=TOP_P, num_return_sequences=STEP_SAMPLES, max_new_tokens=ANSWER_TOKENS,
            eos_token_id=list(template.stop_ids), pad_token_id=template.end_id,
        )  # fmt: skip
        texts = template.tokenizer.batch_decode(rows[:, width:], skip_special_tokens=True)
        best = []
        for place, i in enumerate(questions):
            own = texts[place * STEP_SAMPLES : (place + 1) * STEP_SAMPLES]
            scores = [scorer.score(originals[i], text)["rougeL"].recall for text in own]
            best.append(own[int(np.argmin(scores))])
        return best

    works["transformers + rouge_score"] = theirs
    seconds = alternate(works, repetitions)
    medians = {name: median(found) for name, found in seconds.items()}
    base = medians["transformers + rouge_score"]
    return {
        "questions": QUESTIONS, "samples": STEP_SAMPLES, "seconds": seconds,
        "ratio": {name: base / own for name, own in medians.items()},
    }  # fmt: skip


def spread(found: Sequence[float]) -> str:
    """Median and range."""
    return f"{median(found):8.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    """Measure, print two tables, and, with all models, write `benchmarks/sampling.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="default: all"
    )
    parser.add_argument(
        "--repetitions", type=int, default=3, help="measurements of each; %(default)s"
    )
    options = parser.parse_args()
    load, tries = os.getloadavg()[0], alternate(ceiling_works(), 5)
    found = rates({name: min(seconds) for name, seconds in tries.items()})
    ceilings = f"matmul {found['flops'] / 1e9:.0f} GFLOP/s, copy {found['bytes'] / 1e9:.1f} GB/s"
    print(f"{ceilings}, load {load:.1f}\n")
    heads = [
        ("parameters", 13), ("ours tok/s", 12), ("theirs", 9), ("ratio", 8), ("of bound", 10),
        ("GFLOP/s in turn", 17), ("of that", 10),
    ]  # fmt: skip
    print(f"{'raw decoding':<12}" + "".join(f"{head:>{width}}" for head, width in heads))
    rows = {}
    for name in options.models:
        rows[name] = row = raw(name, options.repetitions, found)
        speed = row["tokens_per_second"]
        print(
            f"{name:<12}{row['parameters']:>13,}{speed['pmc_jax']:>12,.0f}"
            f"{speed['transformers']:>9,.0f}{row['ratio']:>7.1f}x{row['share_of_bound']:>10.0%}"
            f"{row['ceilings_in_turn']['flops'] / 1e9:>17.0f}{row['share_in_turn']:>10.0%}",
            flush=True,
        )
    step = step_comparison(options.repetitions)
    print(f"\nselected responses of a step{'':<8}seconds{'':<17}ratio")
    for name, seconds in step["seconds"].items():
        print(f"{name:<28}{spread(seconds):<28}{step['ratio'][name]:>8.1f}x")
    result = {"ceilings": found, "load_average": load, "raw": rows, "step": step}
    if list(rows) == list(MODELS):
        (Path(__file__).parent / "sampling.json").write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
