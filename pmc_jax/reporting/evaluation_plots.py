"""The figures of an evaluation, one line a model, as the paper has them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.model_lines import Line, log_steps, model_axes, shares
from pmc_jax.reporting.plots import LIGHT, Plot, plain_style


def evaluation_plots(files: EvaluationFiles) -> list[Plot]:
    """Every figure that the evaluation's parts can give."""
    with plain_style():
        drawn = [
            *attack_plots(files),
            *relearning_plots(files),
            side_effect_plot(files),
            quantile_plot(files),
            minimum_plot(files),
        ]
    return [plot for plot in drawn if plot is not None]


ATTACK_TITLES = {
    "sampling": "Sampling",
    "prefilling": "Forced beginning",
    "rewording": "Other wordings",
}


def attack_plots(files: EvaluationFiles) -> list[Plot]:
    """For each attack, what the most revealing of m answers holds (the paper's Figure 4)."""
    plots = []
    for attack, title in ATTACK_TITLES.items():
        found = {m: part.get("sampled", part) for m, part in files.of_part(attack).items()}
        for key, what, y_title, caption in (
            (
                "curve", "recall of the most revealing of m", "mean over questions",
                "How much of the right answer the most revealing of m answers holds, on average.",
            ),
            (
                "secret_curve", "secrets out after m", "share of questions",
                "Share of questions whose secret is in at least one of m answers.",
            ),
        ):  # fmt: skip
            lines = [
                Line(model, np.arange(1, len(part[key]) + 1.0), np.array(part[key], float),
                     f"{part[key][-1]:.2f}")
                for model, part in found.items() if part.get(key)
            ]  # fmt: skip
            if not lines:
                continue
            figure, axes = model_axes(files, f"{title}: {what}", y_title, lines)
            log_steps(axes, max(line.x[-1] for line in lines), "answers to a question, m")
            shares(axes)
            plots.append(
                Plot(
                    f"{attack}_{key}",
                    f"{title}, {what} answers. " + ends_in_words(lines, "one answer"),
                    caption,
                    figure,
                )
            )
    return plots


def ends_in_words(lines: Sequence[Line], start: str) -> str:
    """First and last value of every line."""
    return "; ".join(
        f"{line.model}: {line.y[0]:.2f} for {start}, {line.y[-1]:.2f} for {line.x[-1]:g}"
        for line in lines
    )


def relearning_plots(files: EvaluationFiles) -> list[Plot]:
    """Greedy leakage of forget questions that were not taught, over steps of fine-tuning."""
    plots = []
    for kind, title, caption in (
        (
            "forget", "Trained again on a few forget rows",
            "Greedy answers to the forget questions it was not trained on again: if they come "
            "back with the others, they were hidden, not gone.",
        ),
        (
            "benign", "Trained again on a few rows to keep",
            "Greedy answers to the forget questions after ordinary fine-tuning on harmless rows.",
        ),
    ):  # fmt: skip
        parts = {m: p[kind]["curve"] for m, p in files.of_part("relearning").items() if kind in p}
        known = [point["untaught"] for curve in parts.values() for point in curve]
        if not known or None in known:
            continue
        secret = all(point["secret_rate"] is not None for point in known)
        key, what, y_title = (
            ("secret_rate", "secrets", "share of questions") if secret
            else ("mean", "recall", "mean over questions")
        )  # fmt: skip
        lines = []
        for model, curve in parts.items():
            values = np.array([point["untaught"][key] for point in curve], float)
            steps = np.array([point["steps"] for point in curve], float)
            lines.append(Line(model, steps, values, f"{values[-1]:.2f}"))
        figure, axes = model_axes(files, f"{title}: {what}", y_title, lines)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(lines[0].x)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("steps of fine-tuning", color=LIGHT["muted"])
        shares(axes)
        plots.append(
            Plot(
                f"relearning_{kind}",
                f"{title}, {what} in greedy answers. " + ends_in_words(lines, "no step"),
                caption,
                figure,
            )
        )
    return plots


def side_effect_plot(files: EvaluationFiles) -> Plot | None:
    """Changes of token probabilities in unrelated text (the paper's Figure 5a)."""
    changes = {m: c for m, c in files.summary["side_effects"].items() if c["watched"]}
    if not changes:
        return None
    lines, words = [], []
    for model, change in changes.items():
        counts = np.array(change["watched"]["histogram"], float)
        edges = np.array(change["edges"])
        # On a logarithmic scale nothing lies below the axis, which is at half a token.
        share = np.maximum(counts, 0.1) / counts.sum()
        lines.append(Line(model, (edges[1:] + edges[:-1]) / 2, share))
        numbers = change["watched"]
        words.append(f"{model}: mean {numbers['mean']:+.3f}, spread {numbers['deviation']:.3f}")
    figure, axes = model_axes(
        files, "Unrelated text: change of probabilities", "share of tokens", lines,
        steps="steps-mid",
    )  # fmt: skip
    axes.set_yscale("log")
    fewest = min(0.5 / change["watched"]["tokens"] for change in changes.values())
    axes.set_ylim(fewest, 1.0)
    axes.set_xlim(-1, 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, numticks=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_xlabel("p after − p before", color=LIGHT["muted"])
    return Plot(
        "side_effects",
        "Distribution of the change of a token's probability in unrelated text, at tokens of "
        f"forget answers. {'; '.join(words)}.",
        "Tokens that occur in forget answers, in text that has nothing to do with them: the more "
        "of them lie away from 0, the more the unlearning has damaged. Shares of tokens, on a "
        "logarithmic scale.",
        figure,
    )


def quantile_plot(files: EvaluationFiles) -> Plot | None:
    """Accuracy of picking the least likely option (the paper's Figure 5b)."""
    parts = files.of_part("least_likely")
    if not parts:
        return None
    lines = []
    for model, part in parts.items():
        rows = part["quantiles"]
        values = np.array([row["accuracy"] for row in rows], float)
        quantiles = np.array([row["quantile"] for row in rows], float)
        lines.append(Line(model, quantiles, values, f"{values[-1]:.2f}"))
    chance = next(iter(parts.values()))["chance"]
    figure, axes = model_axes(
        files, "Least likely option is right", "how often it is", lines, chance=chance
    )
    axes.set_xlabel("share of questions, most suppressed first", color=LIGHT["muted"])
    shares(axes)
    return Plot(
        "least_likely_quantiles",
        f"How often the least likely option is the right one; chance is {chance:.2f}. "
        + ends_in_words(lines, "the most suppressed questions"),
        "Among the questions whose least likely option is least likely. Near the thin line, which "
        "is chance, is best: above it an answer can be recognised by being suppressed, below it "
        "the answer is still known.",
        figure,
    )


def minimum_plot(files: EvaluationFiles) -> Plot | None:
    """Distribution of the least likely option's probability (the paper's Figure 5c)."""
    parts = files.of_part("least_likely")
    if not parts:
        return None
    lines, words = [], []
    for model, part in parts.items():
        minima = np.sort(np.array(part["minima"], float))
        lines.append(Line(model, minima, np.arange(1, len(minima) + 1) / len(minima)))
        words.append(f"{model}: median {np.median(minima):.3f}, least {minima[0]:.3f}")
    figure, axes = model_axes(
        files, "Probability of the least likely option", "share of questions", lines,
        steps="steps-post",
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("at most this probability", color=LIGHT["muted"])
    shares(axes)
    return Plot(
        "least_likely_minima",
        "Share of questions by the probability of their least likely option, all options together "
        f"having 1. {'; '.join(words)}.",
        "Share of questions whose least likely option has at most this probability. A curve far "
        "to the left means that answers were pushed down, which leaves a trace.",
        figure,
    )
