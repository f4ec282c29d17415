"""Several models side by side: the parts' files gathered into one set of numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmc_jax.data.files import read_json
from pmc_jax.evaluation.side_effects import side_effects
from pmc_jax.runs.parts import read_part

Parts = Mapping[str, Mapping[str, Any]]

DISTRIBUTION = ("confidence", "samples", "thresholds", "above", "above_bound")
"""Of a certificate, what the distribution of the recall is drawn from."""

ATTACKS = ("sampling", "prefilling", "rewording")
"""Parts that sample answers and certify what they reveal."""

TOFU_MEASURES = (
    "forget_quality", "model_utility", "forget_truth_ratio", "forget_Q_A_Prob",
    "exact_memorization", "extraction_strength", "mia_loss", "mia_zlib", "mia_min_k",
    "mia_min_k_plus_plus", "mia_reference", "privleak",
)  # fmt: skip


def measured(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The parts that have results."""
    return {name: part for name, part in parts.items() if "lacking" not in part}


def attack_results(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The sampled leakage of every attack that was measured."""
    known = measured(parts)
    return {name: known[name].get("sampled", known[name]) for name in ATTACKS if name in known}


def attack_measures(name: str, attack: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of an attack that samples."""
    certificate = attack["certificate"]
    return {
        f"{name}_mean": attack["mean"],
        f"{name}_worst": attack["worst"],
        f"{name}_secret_rate": attack["secret_rate"],
        f"{name}_secret_worst": attack["secret_worst"],
        f"{name}_leak_bound": certificate["leak_bound"],
        f"{name}_mean_bound": certificate["mean_bound"],
        f"{name}_deviation_bound": certificate["deviation_bound"],
    }


def again_measures(name: str, again: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a model that was changed and measured again."""
    sampling = again["sampling"] or {"worst": None, "secret_worst": None}
    return {
        f"{name}_unlearn_quality": again["measures"]["unlearn_quality"],
        f"{name}_utility": again["measures"]["utility"],
        f"{name}_worst": sampling["worst"],
        f"{name}_secret_worst": sampling["secret_worst"],
    }


def relearned_measures(kind: str, found: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a model that was fine-tuned again, after the last step."""
    last = found["curve"][-1]["untaught"] or {"mean": None, "secret_rate": None}
    return {
        f"relearning_{kind}_greedy": last["mean"],
        f"relearning_{kind}_secret_rate": last["secret_rate"],
        **again_measures(f"relearning_{kind}", found["after"]),
    }


def flat_measures(parts: Parts) -> dict[str, float | None]:
    """One number a key, of all parts of a model."""
    known = measured(parts)
    found: dict[str, float | None] = dict(known.get("quality", {}).get("measures", {}))
    for name, attack in attack_results(parts).items():
        found |= attack_measures(name, attack)
        if (greedy := known[name].get("greedy")) is not None:
            found[f"{name}_greedy"] = greedy["mean"]
            found[f"{name}_greedy_secret_rate"] = greedy["secret_rate"]
    for key in ("accuracy", "most_likely_accuracy", "chance", "median_minimum"):
        if "least_likely" in known:
            found[f"least_likely_{key}"] = known["least_likely"][key]
    for kind in ("forget", "benign"):
        if kind in known.get("relearning", {}):
            found |= relearned_measures(kind, known["relearning"][kind])
    for bits, again in known.get("rounding", {}).items():
        if bits.isdecimal():
            found |= again_measures(f"rounding_{bits}", again)
    for name in TOFU_MEASURES:
        if name in known.get("tofu", {}).get("summary", {}):
            found[f"tofu_{name}"] = known["tofu"]["summary"][name]
    return found


def curves(parts: Parts) -> dict[str, Any]:
    """What the figures of a model show, by part, but for the side effects.

    Of an attack the curves over the number of answers, and how many of the sampled answers are
    above each recall; of relearning the greedy leakage over steps; of the least-likely attack
    its accuracy by quantile, and the smallest probabilities in rising order.
    """
    known = measured(parts)
    found: dict[str, Any] = {
        name: {key: attack[key] for key in ("curve", "secret_curve")}
        | {key: attack["certificate"][key] for key in DISTRIBUTION}
        for name, attack in attack_results(parts).items()
    }
    if "relearning" in known:
        found["relearning"] = {
            kind: [
                {"steps": point["steps"], **(point["untaught"] or {})}
                for point in known["relearning"][kind]["curve"]
            ]
            for kind in ("forget", "benign")
            if kind in known["relearning"]
        }
    if "least_likely" in known:
        choices = known["least_likely"]
        quantiles = [[row["quantile"], row["accuracy"]] for row in choices["quantiles"]]
        found["least_likely"] = {
            "chance": choices["chance"],
            "accuracy_by_quantile": quantiles,
            "minima": sorted(choices["minima"]),
        }
    return found


def moved_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | str:
    """`side_effects` between two models' parts, or why they cannot be compared."""
    if before["text"] != after["text"]:
        return "the two models have different tokens for the text"
    ours, theirs = (np.array(part["probabilities"], float) for part in (after, before))
    watched = np.zeros(len(ours), bool)
    watched[after["watched"]] = True
    return side_effects(theirs, ours, watched)


def text_changes(
    parts: Mapping[str, Parts], before: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """By model, how the probabilities of unrelated text moved; and why not, where not."""
    known = {model: measured(found).get("side_effects") for model, found in parts.items()}
    changes: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if not any(known.values()):
        return changes, reasons
    old = known.get(before) if before else None
    if old is None:
        return changes, {"side_effects": "needs the model before unlearning; give compare=DIR"}
    for model, new in known.items():
        if model == before or new is None:
            continue
        moved = moved_text(old, new)
        if isinstance(moved, str):
            reasons[f"side_effects of {model}"] = moved
        else:
            changes[model] = moved
    return changes, reasons


def text_measures(change: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of the side effects on unrelated text."""
    found: dict[str, float | None] = {}
    for part in ("watched", "other"):
        numbers = change[part] or {}
        for key in ("mean", "deviation", "mean_absolute"):
            found[f"side_effects_{part}_{key}"] = numbers.get(key)
    return found


def reasons_of(parts: Mapping[str, Parts]) -> dict[str, str]:
    """What could not be measured, and why."""
    found: dict[str, str] = {}
    for model in parts.values():
        for name, part in model.items():
            if "lacking" in part:
                found[name] = part["lacking"]
            found |= {f"{name}: {what}": why for what, why in part.get("missing", {}).items()}
    return found


def seconds_of(parts: Parts) -> dict[str, float]:
    """Seconds of each part without compiling, and of that in all parts together.

    What was compiled for one model serves the next: were it not apart, the first would look slow.
    """
    known = measured(parts)
    compiling = {name: part.get("compiling", 0.0) for name, part in known.items()}
    seconds = {name: part["seconds"] - compiling[name] for name, part in known.items()}
    return {**seconds, "compiling": sum(compiling.values())} if known else {}


def summarise_parts(directory: Path, models: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The numbers of all models from `directory`/model/part.json.

    The first model is the one under examination, the second the one before unlearning.
    """
    parts: dict[str, Parts] = {
        model: {name: read_part(directory / model / f"{name}.json") for name in names}
        for model in models
    }
    before = models[1] if len(models) > 1 else None
    changes, reasons = text_changes(parts, before)
    measures = {model: flat_measures(found) for model, found in parts.items()}
    for model, change in changes.items():
        measures[model] |= text_measures(change)
    return {
        "models": list(models),
        "before": before,
        "facts": {model: read_json(directory / model / "model.json") for model in models},
        "measures": measures,
        "curves": {model: curves(found) for model, found in parts.items()},
        "side_effects": changes,
        "certificates": {
            model: {name: attack["in_words"] for name, attack in attack_results(found).items()}
            for model, found in parts.items()
        },
        "lacking": {**reasons_of(parts), **reasons},
        "seconds": {model: seconds_of(found) for model, found in parts.items()},
        "tokens": {
            model: {name: part["tokens"] for name, part in measured(found).items()}
            for model, found in parts.items()
        },
    }
