"""PMC beyond the paper beside other methods: `python benchmarks/beginnings.py [NAME …]`.

Trains on the bundled data with the settings of the demo or those below, and asks every forget
question greedily and 100 times at a temperature of 1: as it is, after two general beginnings that
are never trained on, and after the words before the secret in the data's own answer and in its
other wording. The last two attackers know the sentence that holds the secret. Then the model is
fine-tuned on the true answers to 8 of the questions for 32 steps, and asked the others greedily.

"no unlearning" asks the target model the same, and "never learned" asks it the holdout questions:
how often it guesses.

Results are added to `beginnings.json`, and printed as a table.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pmc_jax as pmc
from pmc_jax.data.files import to_json
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.decoding import Sampling, generate
from pmc_jax.evaluation.quality import holds_secret, quality
from pmc_jax.evaluation.relearning import relearn

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (1, 2, 3)
SAMPLES, MOST_TOKENS, MAX_LENGTH = 100, 40, 96
GENERAL = ("The answer is:", "Yes, of course. It is")
BEYOND = {
    "keep_sampling": True, "final_temperature": 0.5, "beginnings": 2, "offer_refusals": True,
    "retain_weight": 4.0, "retain_per_forget": 4,
}  # fmt: skip
DEMO = {"samples": 8, "max_new_tokens": MOST_TOKENS, "min_len": 4, "retain_per_forget": 2}
RELEARNED, RELEARNING_STEPS = 8, 32
METHODS: dict[str, tuple[pmc.Method, float]] = {
    "PMC, published": (pmc.PMC(**DEMO), 3e-4),
    "PMC, beyond the paper": (pmc.PMC(**{**DEMO, **BEYOND}), 5e-4),
    "PMC, beyond, faster": (pmc.PMC(**{**DEMO, **BEYOND}), 1e-3),
    "NPO": (pmc.NPO(beta=0.5, retain_weight=1.0), 3e-4),
    "SimNPO": (pmc.SimNPO(beta=4.5, retain_weight=1.0), 3e-4),
    "DPO": (pmc.DPO(beta=0.5, retain_weight=4.0), 3e-4),
    "GD": (pmc.GD(retain_weight=1.0), 1e-4),
}
"""Methods and learning rates; those that are not PMC as in `configs/settings/demo/`."""
TARGET, NEVER_LEARNED = "no unlearning", "never learned"
NAMES = (TARGET, NEVER_LEARNED, *METHODS)


def words_before(text: str, secret: str) -> str:
    """The words of a text before a secret; none if it does not contain it."""
    return text.partition(secret)[0].rstrip() if secret in text else ""


def leaks(
    model: pmc.LanguageModel,
    rows: Sequence[EvaluationRow],
    beginnings: Sequence[str],
    samples: int,
    key: jax.Array,
) -> np.ndarray:
    """Whether answers contain the secret, `[questions, samples]`; 0 samples: the greedy answer."""
    template = model.template
    prompts = [
        template.encode_prompt(row.question) + (template.encode_prefix(begun) if begun else [])
        for row, begun in zip(rows, beginnings, strict=True)
    ]
    found = generate(
        model.params, prompts, cfg=model.config,
        sampling=Sampling(1.0 if samples else 0.0, stop_ids=template.stop_ids), key=key,
        limits=[MOST_TOKENS] * len(prompts), samples=samples or 1, decode_batch=512,
        dtype=model.dtype,
    )  # fmt: skip
    return np.array(
        [
            [bool(holds_secret(template.decode(tokens), row.secret)) for tokens in answers]
            for row, answers in zip(rows, found, strict=True)
        ]
    )


def relearned(model: pmc.LanguageModel, rows: Sequence[EvaluationRow], seed: int) -> float:
    """The share of the other questions that give their secret greedily, in percent."""
    drawn = set(np.random.default_rng(seed).permutation(len(rows))[:RELEARNED].tolist())
    pairs = [
        model.template.encode_pair(row.question, str(row.answer))
        for i, row in enumerate(rows) if i in drawn
    ]  # fmt: skip
    others = [row for i, row in enumerate(rows) if i not in drawn]
    ((_, tuned),) = relearn(
        model, pairs, [RELEARNING_STEPS], batch_size=RELEARNED, learning_rate=1e-4, seed=seed
    )
    found = leaks(tuned.for_decoding(), others, [""] * len(others), 0, jax.random.key(seed))
    return float(100 * found.mean())


def attacked(
    model: pmc.LanguageModel,
    rows: Sequence[EvaluationRow],
    sources: dict[str, Sequence[EvaluationRow]],
    key: jax.Array,
) -> dict[str, dict[str, float]]:
    """The shares of questions that give their secret under each attack, in percent.

    Args:
        model: ready for decoding.
        sources: rows whose answers have the words before the secret, for each attack of this kind.
    """
    attacks = {"no beginning": [""] * len(rows)}
    attacks |= {begun: [begun] * len(rows) for begun in GENERAL}
    for name, source in sources.items():
        attacks[name] = [words_before(str(row.answer), str(row.secret)) for row in source]
    found = {}
    for name, beginnings in attacks.items():
        sampled = leaks(model, rows, beginnings, SAMPLES, key)
        found[name] = {
            "greedy": 100 * leaks(model, rows, beginnings, 0, key).mean(),
            "any sample": 100 * sampled.any(axis=1).mean(),
            "a sample": 100 * sampled.mean(),
        }
    return found


def never_learned(data: pmc.Dataset, seed: int) -> dict[str, Any]:
    """The same for people that the target model never learned about: how often it guesses."""
    model, key = pmc.load_model("bundled").for_decoding(), jax.random.key(seed + 2**16)
    rows = data.controls.holdout
    return attacked(model, rows, {"its sentence": rows}, key)


def measured(model: pmc.LanguageModel, data: pmc.Dataset, seed: int) -> dict[str, Any]:
    """Quality and utility, and the shares of questions that give their secret, in percent."""
    tuned = relearned(model, data.evaluation["forget"], seed)
    model, key = model.for_decoding(), jax.random.key(seed + 2**16)
    sets = data.evaluation
    rows = sets["forget"]
    sources = {"its sentence": rows, "its other sentence": sets["paraphrase"]}
    config = pmc.EvaluationConfig(max_new_tokens=MOST_TOKENS, attack_samples=0)
    measures = quality(model, sets, config, key, max_length=MAX_LENGTH)["measures"]
    found = {name: measures[name] for name in ("unlearn_quality", "utility")}
    for name in ("degenerate_rate", "refusal_rate", "assertion_rate"):
        found[name] = 100 * measures[name]
    found["relearned"] = tuned
    return found | attacked(model, rows, sources, key)


def run(name: str, seed: int) -> dict[str, Any]:
    """One training run and what it leaves."""
    model, data = pmc.load_model("bundled"), pmc.Dataset.bundled()
    if name == TARGET:
        return {"method": name, "seed": seed, **measured(model, data, seed)}
    if name == NEVER_LEARNED:
        return {"method": name, "seed": seed, **never_learned(data, seed)}
    method, rate = METHODS[name]
    training = pmc.Training(
        epochs=14, batch_size=16, max_length=MAX_LENGTH, decode_batch=512, compact=False
    )
    result = pmc.unlearn(
        model, data, method, training, pmc.Optimizer(learning_rate=rate), seed=seed
    )
    return {"method": name, "seed": seed, **measured(result.model, data, seed)}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds as a Markdown table; leakage as greedy / in any of 100 samples."""
    keys = ["unlearn_quality", "utility", "degenerate_rate", "refusal_rate", "relearned"]
    attacks = ["no beginning", *GENERAL, "its sentence", "its other sentence"]
    heads = ["method", "seeds", "UQ", "U", "degenerate", "refusals", "relearned", *attacks]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in NAMES:
        own = [found for found in results if found["method"] == name]
        if not own:
            continue
        cells = [
            f"{np.mean([one[key] for one in own]):.1f}" if key in own[0] else "" for key in keys
        ]
        for attack in attacks:
            if attack not in own[0]:
                cells.append("")
                continue
            kinds = ("greedy", "any sample")
            cells.append(
                " / ".join(f"{np.mean([one[attack][kind] for one in own]):.0f}" for kind in kinds)
            )
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    known = {(found["method"], found["seed"]) for found in results}
    for seed in arguments.seeds:
        for name in arguments.names:
            if (name, seed) not in known:
                results.append(run(name, seed))
                RESULTS.write_text(to_json(results, indent=1) + "\n")
                print(results[-1], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
