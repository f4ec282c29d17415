"""Several models side by side: the parts' files gathered into one set of numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmc_jax.files import read_json

Parts = Mapping[str, Mapping[str, Any]]

ATTACKS = ("sampling", "prefilling")
"""Parts that sample answers and certify what they reveal."""


def attack_results(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The sampled leakage of every attack that was measured."""
    known = {name: parts[name] for name in ATTACKS if "lacking" not in parts.get(name, {"lacking"})}
    return {name: part.get("sampled", part) for name, part in known.items()}


def flat_measures(parts: Parts) -> dict[str, float | None]:
    """One number a key, of all parts of a model."""
    found: dict[str, float | None] = dict(parts["quality"]["measures"])
    for name, attack in attack_results(parts).items():
        certificate = attack["certificate"]
        found |= {
            f"{name}_mean": attack["mean"],
            f"{name}_worst": attack["worst"],
            f"{name}_secret_rate": attack["secret_rate"],
            f"{name}_secret_worst": attack["secret_worst"],
            f"{name}_leak_bound": certificate["leak_bound"],
            f"{name}_mean_bound": certificate["mean_bound"],
            f"{name}_deviation_bound": certificate["deviation_bound"],
        }
    greedy = parts.get("prefilling", {}).get("greedy")
    if greedy is not None:
        found["prefilling_greedy"] = greedy["mean"]
        found["prefilling_greedy_secret_rate"] = greedy["secret_rate"]
    for key in ("accuracy", "most_likely_accuracy", "chance", "median_minimum"):
        if key in parts.get("least_likely", {}):
            found[f"least_likely_{key}"] = parts["least_likely"][key]
    return found


def summarise_parts(directory: Path, models: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The numbers of all models from `directory`/model/part.json.

    The first model is the one under examination, the second the one before unlearning.
    """
    parts: dict[str, Parts] = {
        model: {name: read_json(directory / model / f"{name}.json") for name in names}
        for model in models
    }
    return {
        "models": list(models),
        "before": models[1] if len(models) > 1 else None,
        "measures": {model: flat_measures(found) for model, found in parts.items()},
        "certificates": {
            model: {name: attack["in_words"] for name, attack in attack_results(found).items()}
            for model, found in parts.items()
        },
        "lacking": {
            name: part["lacking"]
            for found in parts.values()
            for name, part in found.items()
            if "lacking" in part
        },
        "seconds": {
            model: {name: part["seconds"] for name, part in found.items() if "seconds" in part}
            for model, found in parts.items()
        },
    }
