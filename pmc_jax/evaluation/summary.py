"""The summary of an evaluation: the measures of all models, gathered from their parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmc_jax.data.files import read_json
from pmc_jax.evaluation.side_effects import side_effects
from pmc_jax.evaluation.verdicts import Asked, verdict
from pmc_jax.runs.parts import read_part

Parts = Mapping[str, Mapping[str, Any]]
"""What each part measured of one model, or why it is `lacking`."""

DISTRIBUTION = ("confidence", "samples", "thresholds", "above", "above_bound")
"""Keys of a certificate from which the distribution of the recall is drawn."""

KINDS = ("forget", "benign")
"""What a model is fine-tuned on again."""

ATTACKS = ("sampling", "prefilling", "rewording")
"""Parts that sample answers and certify what they reveal."""

TOFU_MEASURES = (
    "forget_quality", "model_utility", "forget_truth_ratio", "forget_Q_A_Prob",
    "exact_memorization", "extraction_strength", "mia_loss", "mia_zlib", "mia_min_k",
    "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference", "privleak",
)  # fmt: skip


def measured(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The parts that have results."""
    return {name: part for name, part in parts.items() if "lacking" not in part}


def attack_results(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The sampled leakage of every attack whose answers could be compared with right ones."""
    known = measured(parts)
    found = {name: known[name].get("sampled", known[name]) for name in ATTACKS if name in known}
    return {name: attack for name, attack in found.items() if "certificate" in attack}


def attack_measures(name: str, attack: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of an attack that samples."""
    certificate = attack["certificate"]
    return {
        f"{name}_mean": attack["mean"],
        f"{name}_worst": attack["worst"],
        f"{name}_facts": attack["facts_mean"],
        f"{name}_facts_worst": attack["facts_worst"],
        f"{name}_secret_rate": attack["secret_rate"],
        f"{name}_secret_worst": attack["secret_worst"],
        f"{name}_leak_bound": certificate["leak_bound"],
        f"{name}_mean_bound": certificate["mean_bound"],
        f"{name}_deviation_bound": certificate["deviation_bound"],
    }


def again_measures(name: str, again: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a model whose weights were changed."""
    sampling = again["sampling"] or {}
    return {
        f"{name}_unlearn_quality": again["measures"]["unlearn_quality"],
        f"{name}_utility": again["measures"]["utility"],
        f"{name}_worst": sampling.get("worst"),
        f"{name}_facts_worst": sampling.get("facts_worst"),
        f"{name}_secret_worst": sampling.get("secret_worst"),
    }


def relearned_measures(kind: str, found: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a model that was fine-tuned again, after the last step."""
    last = found["curve"][-1]["untrained"] or {}
    return {
        f"relearning_{kind}_greedy": last.get("mean"),
        f"relearning_{kind}_facts": last.get("facts"),
        f"relearning_{kind}_secret_rate": last.get("secret_rate"),
        **again_measures(f"relearning_{kind}", found["after"]),
    }


def flat_measures(parts: Parts) -> dict[str, float | None]:
    """All measures of one model by name."""
    known = measured(parts)
    found: dict[str, float | None] = dict(known.get("quality", {}).get("measures", {}))
    for name, attack in attack_results(parts).items():
        found |= attack_measures(name, attack)
        if (greedy := known[name].get("greedy")) is not None:
            found[f"{name}_greedy"] = greedy["mean"]
            found[f"{name}_greedy_facts"] = greedy["facts"]
            found[f"{name}_greedy_secret_rate"] = greedy["secret_rate"]
    for key in ("accuracy", "most_likely_accuracy", "chance", "median_minimum"):
        if "least_likely" in known:
            found[f"least_likely_{key}"] = known["least_likely"][key]
    for kind in KINDS:
        if kind in known.get("relearning", {}):
            found |= relearned_measures(kind, known["relearning"][kind])
    for bits, again in known.get("quantisation", {}).items():
        if bits.isdecimal():
            found |= again_measures(f"quantisation_{bits}", again)
    for name in TOFU_MEASURES:
        if name in known.get("tofu", {}).get("summary", {}):
            found[f"tofu_{name}"] = known["tofu"]["summary"][name]
    return found


def asked_of(parts: Parts) -> Asked | None:
    """What a model answered to the forget questions; None without greedy answers."""
    known = measured(parts)
    if "quality" not in known:
        return None
    attacks: dict[str, list[Mapping[str, Any]]] = {}
    for name in ATTACKS:
        part = known.get(name, {})
        for key, found in ((f"{name}_greedy", part.get("greedy")), (name, part.get("sampled"))):
            if found := found or (part if key == name else None):
                attacks[key] = [*found.get("questions", ()), *found.get("open", ())]
    changed = {
        f"relearning_{kind}": found["after"]["sampling"]["revealed"]
        for kind, found in known.get("relearning", {}).items()
        if kind in KINDS and found["after"]["sampling"]
    }
    changed |= {
        f"quantisation_{bits}": again["sampling"]["revealed"]
        for bits, again in known.get("quantisation", {}).items()
        if bits.isdecimal() and again["sampling"]
    }
    return Asked(known["quality"]["answers"], attacks, changed)


def verdict_of(parts: Mapping[str, Parts], before: str | None) -> dict[str, Any] | None:
    """The verdict on the model under evaluation, the first; None without greedy answers."""
    first = next(iter(parts))
    after, old = asked_of(parts[first]), asked_of(parts[before]) if before else None
    if after is None:
        return None
    utility = tuple(
        None if model is None else flat_measures(parts[model]).get("utility")
        for model in (before, first)
    )
    return verdict(after, old, utility=(utility[0], utility[1]))


def curves(parts: Parts) -> dict[str, Any]:
    """What the figures of one model show, by part; `text_changes` has the side effects.

    - An attack: the curves over the number of answers, and the number of sampled answers above
      each recall.
    - Relearning: the greedy leakage over steps.
    - The least-likely attack: its accuracy by quantile, and the sorted minima.
    """
    known = measured(parts)
    found: dict[str, Any] = {
        name: {key: attack[key] for key in ("curve", "facts_curve", "secret_curve")}
        | {key: attack["certificate"][key] for key in DISTRIBUTION}
        for name, attack in attack_results(parts).items()
    }
    if "relearning" in known:
        found["relearning"] = {
            kind: [
                {"steps": point["steps"], **(point["untrained"] or {})}
                for point in known["relearning"][kind]["curve"]
            ]
            for kind in KINDS
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


def text_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | str:
    """`side_effects` between the parts of two models, or why they cannot be compared."""
    if before["text"] != after["text"]:
        return "the two models have different tokens for the text"
    ours, theirs = (np.array(part["probabilities"], float) for part in (after, before))
    watched = np.zeros(len(ours), bool)
    watched[after["watched"]] = True
    return side_effects(theirs, ours, watched)


def text_changes(
    parts: Mapping[str, Parts], before: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Changes of the probabilities of unrelated text by model, and reasons for missing ones."""
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
        change = text_change(old, new)
        if isinstance(change, str):
            reasons[f"side_effects of {model}"] = change
        else:
            changes[model] = change
    return changes, reasons


def text_measures(change: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of the side effects on unrelated text."""
    found: dict[str, float | None] = {}
    for part in ("watched", "other"):
        numbers = change[part] or {}
        for key in ("mean", "deviation", "mean_absolute"):
            found[f"side_effects_{part}_{key}"] = numbers.get(key)
    return found


def reasons_of(parts: Mapping[str, Parts]) -> dict[str, str]:
    """What was not measured, with the reasons."""
    found: dict[str, str] = {}
    for model in parts.values():
        for name, part in model.items():
            if "lacking" in part:
                found[name] = part["lacking"]
            found |= {f"{name}: {what}": why for what, why in part.get("missing", {}).items()}
    return found


def seconds_of(parts: Parts) -> dict[str, float]:
    """Seconds of each part without compilation, and the seconds of all compilation.

    Compilation is separate, since models of the same shape share it: otherwise the first model
    would look slow.
    """
    known = measured(parts)
    compiling = {name: part.get("compiling", 0.0) for name, part in known.items()}
    seconds = {name: part["seconds"] - compiling[name] for name, part in known.items()}
    return {**seconds, "compiling": sum(compiling.values())} if known else {}


def read_parts(directory: Path, models: Sequence[str], names: Sequence[str]) -> dict[str, Parts]:
    """The parts `names` of every model, from `directory`/model/part.json."""
    return {
        model: {name: read_part(directory / model / f"{name}.json") for name in names}
        for model in models
    }


def summarise(
    parts: Mapping[str, Parts], before: str | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The measures of all models, and what figures and tables show of them.

    Args:
        parts: the parts of each model; the first model is the one under evaluation.
        before: name of the model before unlearning.
        facts: further facts about each model.
    """
    changes, reasons = text_changes(parts, before)
    measures = {model: flat_measures(found) for model, found in parts.items()}
    for model, change in changes.items():
        measures[model] |= text_measures(change)
    return {
        "verdict": verdict_of(parts, before),
        "models": list(parts),
        "before": before,
        "facts": dict(facts),
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


def summarise_directory(
    directory: Path, models: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """The summary of the parts `names` in `directory`.

    The first model is the one under evaluation, the second the one before unlearning.
    """
    facts = {model: read_json(directory / model / "model.json") for model in models}
    before = models[1] if len(models) > 1 else None
    return summarise(read_parts(directory, models, names), before, facts)
