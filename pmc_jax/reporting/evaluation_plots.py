"""The figures of an evaluation, as in the paper, with one line per model."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.measures import percent
from pmc_jax.reporting.model_lines import THIN, Line, in_percent, log_steps, model_axes, shares
from pmc_jax.reporting.plots import LIGHT, Plot, plain_style
from pmc_jax.reporting.training_curves import curve_plots


def evaluation_plots(files: EvaluationFiles) -> list[Plot]:
    """Every figure for which the evaluation has numbers."""
    with plain_style():
        drawn = [
            *attack_plots(files),
            *distribution_plots(files),
            *relearning_plots(files),
            side_effect_plot(files),
            quantile_plot(files),
            minimum_plot(files),
            *curve_plots(files),
        ]
    return [plot for plot in drawn if plot is not None]


ATTACK_TITLES = {
    "sampling": "Sampling",
    "prefilling": "Forced beginning",
    "rewording": "Other wordings",
}


def attack_plots(files: EvaluationFiles) -> list[Plot]:
    """For each attack, the leakage over the number of answers m (the paper's Figure 4)."""
    plots = []
    for attack, title in ATTACK_TITLES.items():
        found = files.curves(attack)
        for key, what, y_title, caption in (
            (
                "curve", "recall of the most revealing of m", "mean over questions",
                "How much of the right answer the most revealing of m answers contains, on "
                "average.",
            ),
            (
                "facts_curve", "fact words in the most revealing of m", "mean over questions",
                "How many of the words that carry the right answer's facts the most revealing of m "
                "answers contains, on average.",
            ),
            (
                "secret_curve", "secrets revealed by m", "share of questions",
                "Share of questions whose secret is in at least one of m answers.",
            ),
        ):  # fmt: skip
            lines = [
                Line(model, np.arange(1, len(part[key]) + 1.0), np.array(part[key], float),
                     percent(part[key][-1]))
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


def distribution_plots(files: EvaluationFiles) -> list[Plot]:
    """For each attack, the share of answers that contain more than a share of the right one."""
    plots = []
    for attack, title in ATTACK_TITLES.items():
        found = files.curves(attack)
        if not found:
            continue
        lines, words = [], []
        for model, part in found.items():
            share = np.array(part["above"], float) / part["samples"]
            # A share of 0 is drawn below the logarithmic axis, which begins at half an answer.
            drawn = np.maximum(share, 0.1 / part["samples"])
            x, bound = np.array(part["thresholds"], float), np.array(part["above_bound"], float)
            lines.append(Line(model, x, drawn, bound=bound))
            half = part["thresholds"].index(0.5)
            words.append(
                f"{model}: {percent(share[0])} contain any of it (at most {percent(bound[0])}), "
                f"{percent(share[half])} more than half (at most {percent(bound[half])})"
            )
        confidence = f"{100 * next(iter(found.values()))['confidence']:g}%"
        figure, axes = model_axes(
            files, f"{title}: how much answers contain", "share of answers", lines,
            thin_line=f"thin: upper bound, {confidence} confidence", steps="steps-post",
        )  # fmt: skip
        log_shares(axes, min(0.5 / part["samples"] for part in found.values()))
        axes.set_xlim(-0.02, 1)
        axes.xaxis.set_major_formatter(in_percent())
        axes.set_xlabel("more than this share of the right answer", color=LIGHT["muted"])
        plots.append(
            Plot(
                f"{attack}_distribution",
                f"{title}, share of sampled answers by how much of the right answer they contain; "
                f"in brackets the upper bound with {confidence} confidence. {'; '.join(words)}.",
                "Share of sampled answers that contain more than a share of the right answer, on a "
                "logarithmic scale. A line at the bottom means none. With "
                f"{confidence} confidence, the share among all answers that the model can give is "
                "below the thin line.",
                figure,
            )
        )
    return plots


def log_shares(axes: Axes, least: float) -> None:
    """A logarithmic vertical axis of shares from `least` to 1, in percent."""
    axes.set_yscale("log")
    axes.set_ylim(least, 1.0)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, numticks=5))
    axes.yaxis.set_major_formatter(in_percent())


def ends_in_words(lines: Sequence[Line], start: str, last: str = "") -> str:
    """First and last value of every line as text."""
    return "; ".join(
        f"{line.model}: {percent(line.y[0])} for {start}, "
        f"{percent(line.y[-1])} for {last or f'{line.x[-1]:g}'}"
        for line in lines
    )


def relearning_plots(files: EvaluationFiles) -> list[Plot]:
    """Greedy leakage of forget questions that were not trained on, over fine-tuning steps."""
    plots = []
    for kind, title, caption in (
        (
            "forget", "Fine-tuned on a few forget examples",
            "Most likely answers to the other forget questions. If these answers come back too, "
            "they were hidden, not gone.",
        ),
        (
            "benign", "Fine-tuned on a few benign examples",
            "Most likely answers to the forget questions after ordinary fine-tuning on retain "
            "examples.",
        ),
    ):  # fmt: skip
        parts = {m: p[kind] for m, p in files.curves("relearning").items() if kind in p}
        points = [point for curve in parts.values() for point in curve]
        if not points or not all("mean" in point for point in points):
            continue
        secret = all(point["secret_rate"] is not None for point in points)
        key, what, y_title = (
            ("secret_rate", "secrets", "share of questions") if secret
            else ("mean", "recall", "mean over questions")
        )  # fmt: skip
        lines = []
        for model, curve in parts.items():
            values = np.array([point[key] for point in curve], float)
            steps = np.array([point["steps"] for point in curve], float)
            lines.append(Line(model, steps, values, percent(values[-1])))
        figure, axes = model_axes(files, f"{title}: {what}", y_title, lines)
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks(lines[0].x)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("steps of fine-tuning", color=LIGHT["muted"])
        shares(axes)
        plots.append(
            Plot(
                f"relearning_{kind}",
                f"{title}, {what} in most likely answers. " + ends_in_words(lines, "no step"),
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
        # A share of 0 is drawn below the logarithmic axis, which begins at half a token.
        share = np.maximum(counts, 0.1) / counts.sum()
        lines.append(Line(model, (edges[1:] + edges[:-1]) / 2, share))
        numbers = change["watched"]
        words.append(f"{model}: mean {numbers['mean']:+.3f}, deviation {numbers['deviation']:.3f}")
    figure, axes = model_axes(
        files, "Unrelated text: change of probabilities", "share of tokens", lines,
        steps="steps-mid",
    )  # fmt: skip
    log_shares(axes, min(0.5 / change["watched"]["tokens"] for change in changes.values()))
    axes.set_xlim(-1, 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("probability after − probability before", color=LIGHT["muted"])
    return Plot(
        "side_effects",
        "Distribution of the change of a token's probability in unrelated text, at tokens of "
        f"forget answers. {'; '.join(words)}.",
        "Tokens of unrelated text that occur in forget answers. The more of them are far from 0, "
        "the larger the side effects. Shares of tokens, on a logarithmic scale.",
        figure,
    )


def quantile_plot(files: EvaluationFiles) -> Plot | None:
    """Accuracy of picking the least likely option (the paper's Figure 5b)."""
    parts = files.curves("least_likely")
    if not parts:
        return None
    lines = []
    for model, part in parts.items():
        quantiles, values = np.array(part["accuracy_by_quantile"], float).T
        lines.append(Line(model, quantiles, values, percent(values[-1])))
    chance = next(iter(parts.values()))["chance"]
    figure, axes = model_axes(
        files, "Least likely option is right", "how often it is", lines,
        thin_line=f"chance, {percent(chance)}",
    )  # fmt: skip
    axes.axhline(chance, color=LIGHT["ink"], linewidth=THIN, zorder=1)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(in_percent())
    for line in axes.lines:
        line.set_clip_on(False)  # the last symbol stays whole
    axes.set_xlabel("share of questions, most suppressed first", color=LIGHT["muted"])
    shares(axes)
    return Plot(
        "least_likely_quantiles",
        f"How often the least likely option is the right one; chance is {percent(chance)}. "
        + ends_in_words(lines, "the most suppressed questions", "all"),
        "Accuracy on the questions with the smallest probability of an option, for growing shares "
        "of questions. Near the thin line, which is chance, is best. Above it, suppression gives "
        "the answer away; below it, the answer is still known.",
        figure,
    )


def minimum_plot(files: EvaluationFiles) -> Plot | None:
    """Distribution of the least likely option's probability (the paper's Figure 5c)."""
    parts = files.curves("least_likely")
    if not parts:
        return None
    lines, words = [], []
    for model, part in parts.items():
        minima = np.array(part["minima"], float)
        lines.append(Line(model, minima, np.arange(1, len(minima) + 1) / len(minima)))
        median, least = percent(float(np.median(minima))), percent(minima[0])
        words.append(f"{model}: median {median}, least {least}")
    figure, axes = model_axes(
        files, "Probability of the least likely option", "share of questions", lines,
        steps="steps-post",
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(in_percent())
    axes.set_xlabel("at most this probability", color=LIGHT["muted"])
    shares(axes)
    return Plot(
        "least_likely_minima",
        "Share of questions by the probability of their least likely option; the options of a "
        f"question sum to 100%. {'; '.join(words)}.",
        "Share of questions whose least likely option has at most this probability. A curve far "
        "to the left means that answers were suppressed, which leaves a trace.",
        figure,
    )
