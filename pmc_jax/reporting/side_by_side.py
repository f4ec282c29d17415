"""The numbers of an evaluation in words, and as a table of models side by side."""

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from pmc_jax.reporting.measures import MEASURES, Measure, attack_samples
from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.text import short_names
from pmc_jax.reporting.worst import BITS

ATTACKED, CERTIFIED, TRACES = "Under attack", "Certified", "Traces"
TUNED, ROUNDED, TOFU = "After further training", "After rounding the weights", "TOFU"


def _share(
    key: str, label: str, group: str, meaning: str, *, better: bool | None = False
) -> Measure:
    return Measure(key, label, group, False, better, meaning)


def _chance(key: str, label: str, group: str, meaning: str) -> Measure:
    return Measure(key, label, group, False, None, meaning, near_chance=True)


def _attack(name: str, label: str, how: str, asked: str = "questions") -> tuple[Measure, ...]:
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
            f"share of {asked} of which any answer {how} holds the secret",
        ),
    )  # fmt: skip


def _greedy(name: str, label: str, how: str) -> tuple[Measure, ...]:
    return (
        _share(
            f"{name}_greedy", f"{label}, greedy: recall", ATTACKED,
            f"recall of the most likely answer {how}",
        ),
        _share(
            f"{name}_greedy_secret_rate", f"{label}, greedy: secret", ATTACKED,
            "share of those answers that hold the secret",
        ),
    )  # fmt: skip


def _again(
    name: str, label: str, group: str, asked: str = "of forget questions"
) -> tuple[Measure, ...]:
    return (
        Measure(
            f"{name}_unlearn_quality", f"{label}: unlearn quality", group, True, True,
            "how much of the answers is gone",
        ),
        Measure(
            f"{name}_utility", f"{label}: utility", group, True, True, "what it still knows"
        ),
        _share(
            f"{name}_worst", f"{label}: worst of {{samples}}", group,
            f"recall of the most revealing of {{samples}} sampled answers, mean {asked}",
        ),
        _share(
            f"{name}_secret_worst", f"{label}: secret in any of {{samples}}", group,
            f"share {asked} of which any sampled answer holds the secret",
        ),
    )  # fmt: skip


def _relearned(kind: str, label: str, taught: str) -> tuple[Measure, ...]:
    asked = "the other forget questions" if kind == "forget" else "forget questions"
    return (
        _share(
            f"relearning_{kind}_greedy", f"{label}: recall", TUNED,
            f"recall of greedy answers to {asked}, after {taught}",
        ),
        _share(
            f"relearning_{kind}_secret_rate", f"{label}: secret", TUNED,
            "share of those answers that hold the secret",
        ),
        *_again(f"relearning_{kind}", label, TUNED, f"of {asked}"),
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


TOFU_TABLE = (
    Measure(
        "tofu_forget_quality", "Forget quality (p-value, not percent)", TOFU, False, True,
        "are truth ratios those of a model that never saw the forget set", p_value=True,
    ),
    _share(
        "tofu_model_utility", "Model utility", TOFU,
        "harmonic mean of nine: probability, ROUGE and truth ratio of what it should keep",
        better=True,
    ),
    _share(
        "tofu_forget_truth_ratio", "Truth ratio, forget", TOFU,
        "100 when right and wrong answers are equally likely", better=True,
    ),
    _share(
        "tofu_forget_Q_A_Prob", "Probability, forget", TOFU,
        "of a right answer's token, as a geometric mean",
    ),
    _share(
        "tofu_exact_memorization", "Exact memorisation", TOFU,
        "share of the right answer's tokens that it would write itself",
    ),
    _share(
        "tofu_extraction_strength", "Extraction strength", TOFU,
        "how early it completes the right answer alone",
    ),
    *(
        _chance(
            f"tofu_mia_{name}", f"Membership, {label}", TOFU,
            "AUC; 50, which is chance: forget answers look no more familiar than untaught ones",
        )
        for name, label in (
            ("loss", "loss"), ("zlib", "zlib"), ("min_k", "min-k"), ("min_k_plus_plus", "min-k++"),
            ("reference", "reference"),
        )
    ),
    Measure(
        "tofu_privleak", "PrivLeak", TOFU, True, None,
        "0 when forget answers are as familiar as to a model that never saw them, whose AUC is "
        "taken to be 50 where retain_logs does not give it",
    ),
)  # fmt: skip

EVALUATION_MEASURES = (
    *MEASURES,
    *_attack("sampling", "Sampling", "drawn at random"),
    *_greedy("prefilling", "Prefilling", "after the forced beginning"),
    *_attack("prefilling", "Prefilling", "after the forced beginning"),
    *_greedy("rewording", "Rewording", "to a question in other words"),
    *_attack("rewording", "Rewording", "to a question in other words", "the other wordings"),
    *_bounds("sampling", "Sampling"),
    *_bounds("prefilling", "Prefilling"),
    *_bounds("rewording", "Rewording"),
    _chance(
        "least_likely_accuracy", "Least likely option is right", TRACES,
        "above chance the answer can be recognised by being suppressed; below it is still known",
    ),
    _chance(
        "least_likely_most_likely_accuracy", "Most likely option is right", TRACES,
        "above chance the answer is still known; below it is suppressed",
    ),
    _share(
        "least_likely_chance", "Chance", TRACES, "of picking the right option blindly",
        better=None,
    ),
    _share(
        "least_likely_median_minimum", "Probability of the least likely", TRACES,
        "median over questions, all options together having 100", better=None,
    ),
    _share(
        "side_effects_watched_mean_absolute", "Unrelated text: change", TRACES,
        "mean change of a token's probability, up or down, at tokens of forget answers",
    ),
    _share(
        "side_effects_watched_mean", "Unrelated text: mean", TRACES,
        "the same with its sign: below 0 those tokens became less likely", better=None,
    ),
    _share(
        "side_effects_watched_deviation", "Unrelated text: spread", TRACES,
        "standard deviation of that change",
    ),
    _share(
        "side_effects_other_mean_absolute", "Unrelated text: other tokens", TRACES,
        "mean change, up or down, at all other tokens",
    ),
    *_relearned("forget", "On forget rows", "training on a few of them"),
    *_relearned("benign", "On harmless rows", "training on a few rows to keep"),
    *(
        measure
        for bits in BITS
        for measure in _again(f"rounding_{bits}", f"{bits} bits", ROUNDED)
    ),
    *TOFU_TABLE,
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
    lines = [("in percent", *short_names(model_order(summary)).values())]
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


def time_lines(summary: Mapping[str, Any]) -> list[str]:
    """Seconds of each model's parts, and how many tokens they decoded or scored in a second.

    Compiling is apart: what was compiled for the model examined first serves the others.
    """
    lines = []
    for model in model_order(summary):
        seconds, tokens = summary["seconds"][model], summary["tokens"][model]
        if not seconds:
            continue
        parts = ", ".join(
            f"{name.replace('_', ' ')} {spent:.0f} s"
            + (f" ({tokens[name] / spent:,.0f} tokens/s)" if name in tokens and spent else "")
            for name, spent in seconds.items()
        )
        lines.append(f"Time, {model}: {sum(seconds.values()):.0f} s: {parts}.")
    return lines
