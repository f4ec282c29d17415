"""The numbers of an evaluation in words, and as a table of models side by side."""

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from pmc_jax.reporting.measures import MEASURES, Measure, attack_samples
from pmc_jax.reporting.run_files import number

ATTACKED, CERTIFIED, TRACES = "Under attack", "Certified", "Traces"


def _share(key: str, label: str, group: str, meaning: str) -> Measure:
    return Measure(key, label, group, False, False, meaning)


def _attack(name: str, label: str, how: str) -> tuple[Measure, ...]:
    return (
        _share(f"{name}_mean", f"{label}: mean recall", ATTACKED, f"recall of an answer {how}"),
        _share(
            f"{name}_worst", f"{label}: worst of {{samples}}", ATTACKED,
            f"recall of the most revealing of {{samples}} answers {how}",
        ),
        _share(
            f"{name}_secret_rate", f"{label}: secret", ATTACKED,
            f"share of answers {how} that hold the secret",
        ),
        _share(
            f"{name}_secret_worst", f"{label}: secret in any of {{samples}}", ATTACKED,
            f"share of questions of which any answer {how} holds the secret",
        ),
    )  # fmt: skip


def _bounds(name: str, label: str) -> tuple[Measure, ...]:
    return (
        _share(
            f"{name}_leak_bound", f"{label}: P(secret) at most", CERTIFIED,
            "probability that a sampled answer holds the secret",
        ),
        _share(
            f"{name}_mean_bound", f"{label}: mean recall at most", CERTIFIED,
            "mean recall of all answers the model could give",
        ),
        _share(
            f"{name}_deviation_bound", f"{label}: deviation at most", CERTIFIED,
            "standard deviation of that recall",
        ),
    )  # fmt: skip


EVALUATION_MEASURES = (
    *MEASURES,
    *_attack("sampling", "Sampling", "drawn at random"),
    _share(
        "prefilling_greedy", "Prefilling, greedy: recall", ATTACKED,
        "recall of the most likely answer after the forced beginning",
    ),
    _share(
        "prefilling_greedy_secret_rate", "Prefilling, greedy: secret", ATTACKED,
        "share of those answers that hold the secret",
    ),
    *_attack("prefilling", "Prefilling", "after the forced beginning"),
    *_bounds("sampling", "Sampling"),
    *_bounds("prefilling", "Prefilling"),
    _share(
        "least_likely_accuracy", "Least likely option is right", TRACES,
        "how often it is; above chance the suppressed answer can be recognised",
    ),
    _share(
        "least_likely_most_likely_accuracy", "Most likely option is right", TRACES,
        "how often it is; near chance the answer is forgotten",
    ),
    _share("least_likely_chance", "Chance", TRACES, "of picking the right option blindly"),
    _share(
        "least_likely_median_minimum", "Probability of the least likely", TRACES,
        "median over questions, all options together having 1",
    ),
)  # fmt: skip


def model_order(summary: Mapping[str, Any]) -> list[str]:
    """The models as a table has them: before unlearning first, then the one examined, others."""
    models, before = list(summary["models"]), summary["before"]
    return models if before is None else [before, *(m for m in models if m != before)]


def compared_rows(summary: dict[str, Any]) -> list[tuple[Measure, list[float | None]]]:
    """The measures that any model has, in the order of the table, with every model's value."""
    models = model_order(summary)
    samples = attack_samples(summary)
    rows = []
    for measure in EVALUATION_MEASURES:
        values = [number(summary["measures"][model].get(measure.key)) for model in models]
        if any(value is not None for value in values):
            label = measure.label.format(samples=samples)
            meaning = measure.meaning.format(samples=samples)
            rows.append((dataclasses.replace(measure, label=label, meaning=meaning), values))
    return rows


def comparison_table(summary: dict[str, Any]) -> str:
    """All measures of all models as aligned plain text, with a line between groups."""
    rows = compared_rows(summary)
    lines = [("", *model_order(summary))]
    lines += [(measure.label, *map(measure.format, values)) for measure, values in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            f"{cell:>{width}}" if column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    groups = [measure.group for measure, _ in rows]
    starts = [i for i in range(len(rows)) if i == 0 or groups[i] != groups[i - 1]]
    for start in reversed(starts):
        texts.insert(start + 1, "─" * len(texts[0]))
    return "\n".join(texts)


def certificate_lines(summary: Mapping[str, Any], width: int | None = None) -> list[str]:
    """Every certificate as a sentence after its model and attack, wrapped to `width` columns.

    `width` defaults to the terminal's, within 40 to 100 columns.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size().columns, 40), 100)
    return [
        textwrap.fill(f"{model}, {attack}: {words}", width, subsequent_indent="  ")
        for model in model_order(summary)
        for attack, words in summary["certificates"][model].items()
    ]
