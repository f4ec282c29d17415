"""The measures of an evaluation as text tables, with the models side by side."""

import dataclasses
import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pmc_jax.reporting.measures import MEASURES, Measure, attack_samples
from pmc_jax.reporting.run_files import number
from pmc_jax.reporting.tables import WIDTH, text_table
from pmc_jax.reporting.text import short_names
from pmc_jax.reporting.worst import BITS

ATTACKED, CERTIFIED, TRACES = "Under attack", "Certified", "Traces"
RELEARNED, QUANTISED, TOFU = "After relearning", "After quantisation", "TOFU"


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
        _share(f"{name}_facts", f"{label}: facts", ATTACKED, f"fact words in an answer {how}"),
        _share(
            f"{name}_facts_worst", f"{label}: facts, worst of {{samples}}", ATTACKED,
            f"fact words in the most revealing of {{samples}} answers {how}",
        ),
        _share(
            f"{name}_secret_rate", f"{label}: secret", ATTACKED,
            f"share of answers {how} that contain the secret",
        ),
        _share(
            f"{name}_secret_worst", f"{label}: secret in any of {{samples}}", ATTACKED,
            f"share of {asked} of which any answer {how} contains the secret",
        ),
    )  # fmt: skip


def _greedy(name: str, label: str, how: str) -> tuple[Measure, ...]:
    return (
        _share(
            f"{name}_greedy", f"{label}, greedy: recall", ATTACKED,
            f"recall of the most likely answer {how}",
        ),
        _share(
            f"{name}_greedy_facts", f"{label}, greedy: facts", ATTACKED,
            f"fact words in the most likely answer {how}",
        ),
        _share(
            f"{name}_greedy_secret_rate", f"{label}, greedy: secret", ATTACKED,
            "share of these answers that contain the secret",
        ),
    )  # fmt: skip


def _again(
    name: str, label: str, group: str, asked: str = "of forget questions"
) -> tuple[Measure, ...]:
    return (
        Measure(
            f"{name}_unlearn_quality", f"{label}: unlearn quality", group, True, True,
            "how much of the forget answers is gone",
        ),
        Measure(
            f"{name}_utility", f"{label}: utility", group, True, True,
            "what the model still knows",
        ),
        _share(
            f"{name}_worst", f"{label}: worst of {{samples}}", group,
            f"recall of the most revealing of {{samples}} sampled answers, mean {asked}",
        ),
        _share(
            f"{name}_facts_worst", f"{label}: facts, worst of {{samples}}", group,
            f"fact words in the most revealing of {{samples}} sampled answers, mean {asked}",
        ),
        _share(
            f"{name}_secret_worst", f"{label}: secret in any of {{samples}}", group,
            f"share {asked} of which any sampled answer contains the secret",
        ),
    )  # fmt: skip


def _relearned(kind: str, label: str, trained: str) -> tuple[Measure, ...]:
    asked = "the other forget questions" if kind == "forget" else "forget questions"
    return (
        _share(
            f"relearning_{kind}_greedy", f"{label}: recall", RELEARNED,
            f"recall of greedy answers to {asked}, after {trained}",
        ),
        _share(
            f"relearning_{kind}_facts", f"{label}: facts", RELEARNED,
            f"fact words in greedy answers to {asked}, after {trained}",
        ),
        _share(
            f"relearning_{kind}_secret_rate", f"{label}: secret", RELEARNED,
            "share of these answers that contain the secret",
        ),
        *_again(f"relearning_{kind}", label, RELEARNED, f"of {asked}"),
    )  # fmt: skip


def _bounds(name: str, label: str) -> tuple[Measure, ...]:
    return (
        _share(
            f"{name}_leak_bound", f"{label}: P(secret) at most", CERTIFIED,
            "probability that a sampled answer contains the secret",
        ),
        _share(
            f"{name}_mean_bound", f"{label}: mean recall at most", CERTIFIED,
            "mean recall over all answers the model can give",
        ),
        _share(
            f"{name}_deviation_bound", f"{label}: deviation at most", CERTIFIED,
            "standard deviation of that recall",
        ),
    )  # fmt: skip


TOFU_TABLE = (
    Measure(
        "tofu_forget_quality", "Forget quality (p-value, not percent)", TOFU, False, True,
        "whether the truth ratios are those of a model that never saw the forget set", p_value=True,
    ),
    _share(
        "tofu_model_utility", "Model utility", TOFU,
        "harmonic mean of nine: probability, ROUGE and truth ratio of three sets to be kept",
        better=True,
    ),
    _share(
        "tofu_forget_truth_ratio", "Truth ratio, forget", TOFU,
        "100 when right and wrong answers are equally likely", better=True,
    ),
    _share(
        "tofu_forget_Q_A_Prob", "Probability, forget", TOFU,
        "geometric mean over the tokens of a right answer",
    ),
    _share(
        "tofu_exact_memorization", "Exact memorisation", TOFU,
        "share of the right answer's tokens that are the model's greedy choice",
    ),
    _share(
        "tofu_extraction_strength", "Extraction strength", TOFU,
        "how early the model completes the right answer alone",
    ),
    *(
        _chance(
            f"tofu_mia_{name}", f"Membership, {label}", TOFU,
            "AUC; at 50, forget answers look as familiar as answers outside the training data",
        )
        for name, label in (
            ("loss", "loss"), ("zlib", "zlib"), ("min_k", "min-k"), ("min_k_plus_plus", "min-k++"),
            ("gradnorm", "gradient norm"), ("reference", "reference"),
        )
    ),
    Measure(
        "tofu_privleak", "PrivLeak", TOFU, True, None,
        "0 if forget answers are as familiar as to a model that never saw them; without "
        "retain_logs, the AUC of that model is taken as 50",
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
        "above chance, suppression gives the answer away; below, the answer is still known",
    ),
    _chance(
        "least_likely_most_likely_accuracy", "Most likely option is right", TRACES,
        "above chance, the answer is still known; below, it is suppressed",
    ),
    _share(
        "least_likely_chance", "Chance", TRACES, "accuracy of a random pick",
        better=None,
    ),
    _share(
        "least_likely_median_minimum", "Probability of the least likely", TRACES,
        "median over questions; all options of a question sum to 100", better=None,
    ),
    _share(
        "side_effects_watched_mean_absolute", "Unrelated text: change", TRACES,
        "mean change of a token's probability, up or down, at tokens of forget answers",
    ),
    _share(
        "side_effects_watched_mean", "Unrelated text: mean", TRACES,
        "the same with sign: below 0, those tokens became less likely", better=None,
    ),
    _share(
        "side_effects_watched_deviation", "Unrelated text: deviation", TRACES,
        "standard deviation of this change",
    ),
    _share(
        "side_effects_other_mean_absolute", "Unrelated text: other tokens", TRACES,
        "mean change, up or down, at all other tokens",
    ),
    *_relearned("forget", "On forget examples", "fine-tuning on a few of them"),
    *_relearned("benign", "On benign examples", "fine-tuning on a few retain examples"),
    *(
        measure
        for bits in BITS
        for measure in _again(f"quantisation_{bits}", f"{bits} bits", QUANTISED)
    ),
    *TOFU_TABLE,
)  # fmt: skip


def model_order(summary: Mapping[str, Any]) -> list[str]:
    """The models in table order: before unlearning, under evaluation, others."""
    models, before = list(summary["models"]), summary["before"]
    return models if before is None else [before, *(m for m in models if m != before)]


def compared_rows(summary: Mapping[str, Any]) -> list[tuple[Measure, list[float | None]]]:
    """The measures that any model has, in table order, with the value of every model."""
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


def comparison_table(summary: Mapping[str, Any], width: int = WIDTH) -> str:
    """All measures of all models as text, with a line between groups."""
    rows = compared_rows(summary)
    groups = [
        [(measure.label, *map(measure.format, values)) for measure, values in group]
        for _, group in groupby(rows, lambda row: row[0].group)
    ]
    header = ("in percent", *short_names(model_order(summary)).values())
    return text_table(header, groups, width=width)


def certificate_lines(summary: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """Every certificate as a sentence after its model and attack, wrapped to `width` columns."""
    return [
        textwrap.fill(f"{model}, {attack}: {words}", width, subsequent_indent="  ")
        for model in model_order(summary)
        for attack, words in summary["certificates"][model].items()
    ]


def time_table(summary: Mapping[str, Any], width: int = WIDTH) -> str:
    """Seconds of each model's parts, and tokens decoded or scored per second.

    Compilation is separate: what is compiled for the first model serves the others.
    """
    names, groups = short_names(model_order(summary)), []
    for model in model_order(summary):
        seconds, tokens = summary["seconds"][model], summary["tokens"][model]
        rows = [
            (
                names[model],
                name.replace("_", " "),
                f"{spent:.1f}",
                f"{tokens[name] / spent:,.0f}" if name in tokens and spent else "",
            )
            for name, spent in seconds.items()
        ]
        if rows:
            groups.append([*rows, (names[model], "total", f"{sum(seconds.values()):.1f}", "")])
    return text_table(("model", "part", "seconds", "tokens/s"), groups, left=(0, 1), width=width)
