"""The plots of a report: matplotlib figures, as PNG files and as SVG in the page."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pmc_jax.reporting.measures import Row, attack_samples, measured_rows
from pmc_jax.reporting.run_files import number

# Name -> (light, dark). Colours of data stay distinct under common colour blindness.
PALETTE = {
    "paper": ("#fdfcf9", "#15181c"),
    "ink": ("#1c1f24", "#e9e7e2"),
    "muted": ("#5c6370", "#a6acb6"),
    "rule": ("#dcd9d1", "#363b43"),
    "before": ("#a3a8af", "#717984"),
    "after": ("#0b63a8", "#62b0f0"),
    "collapse": ("#bd4f0a", "#f39a58"),
    "retain": ("#17795a", "#5ccaa2"),
    "plum": ("#8f3f86", "#dd95d3"),
    "ochre": ("#7d5f00", "#d3b24c"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}

WIDTH = 4.7  # inches; little wider than a phone, so that text stays readable there
FONT_SIZE = 10.5
SMOOTHED_FROM = 40  # steps; with fewer, every step is a dot

FORGET_BARS = {
    "rouge_forget": "original question",
    "rouge_paraphrase": "paraphrased question",
    "worst_case_leakage": "worst of {samples} samples",
    "secret_leak_rate": "the secret itself",
    "secret_leak_rate_sampled": "the secret, any sample",
}
QUALITY_BARS = {
    "unlearn_quality": "unlearn quality",
    "utility": "utility",
    "rouge_retain": "  retain questions",
    "rouge_world_facts": "  world facts",
    "rouge_real_authors": "  real authors",
}


@dataclass(frozen=True)
class Plot:
    """A figure and its texts.

    Attributes:
        name: stem of the PNG file.
        alt: the figure's content in words and numbers, for screen readers.
        caption: what to look for.
    """

    name: str
    alt: str
    caption: str
    figure: Figure


def run_plots(summary: Mapping[str, Any], metrics: Sequence[dict[str, Any]]) -> list[Plot]:
    """Every plot for which the run has numbers."""
    with plain_style():
        return measure_plots(summary) + training_plots(metrics)


def measure_plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Bars before and after: quality and utility, and leakage."""
    rows = {row.measure.key: row for row in measured_rows(summary)}
    charts = (
        (
            "measures",
            "Quality and utility, %",
            QUALITY_BARS,
            "Longer is better. Utility is the mean of the parts below it.",
        ),
        (
            "leakage",
            "What still comes out, %",
            FORGET_BARS,
            "Shorter is better. Share of the right answer's words in the answers, in order; for "
            "the secret, the share of questions whose answers contain it.",
        ),
    )
    plots = []
    for name, title, labels, caption in charts:
        chosen = [
            (label.format(samples=attack_samples(summary)), rows[key])
            for key, label in labels.items()
            if key in rows
        ]
        if chosen:
            alt = f"{title}. " + "; ".join(described(label, row) for label, row in chosen) + "."
            plots.append(Plot(name, alt, caption, bars(title, chosen)))
    return plots


def described(label: str, row: Row) -> str:
    """A pair of bars as text."""
    before, after = (percent_text(row, value) for value in (row.before, row.after))
    return f"{label.strip()}: {before} before, {after} after"


LOSSES = {
    "forget_loss": ("forget", "collapse", "Forget: the method's own loss on forget questions."),
    "retain_loss": ("retain", "retain", "Retain: the loss on answers to be kept."),
}
"""By key of `metrics.jsonl`: label, colour and caption."""


def training_plots(metrics: Sequence[dict[str, Any]]) -> list[Plot]:
    """Selected score and losses over the steps of a run, if the run has them."""
    plots = []
    score = series(metrics, "mean_selected_score")
    if len(score[0]):
        figure, axes = step_axes("Mean selected score")
        draw_line(axes, score, "after", "")
        axes.set_ylim(0, max(1.0, float(score[1].max()) * 1.05))
        label_ends(axes, [(score, "after", "")])
        plots.append(
            Plot(
                "selected_score",
                f"Mean selected score over {len(score[0])} steps: {score[1][0]:.2f} at the first, "
                f"{score[1][-1]:.2f} at the last.",
                "At each visit of a question the model samples several answers. It is trained on "
                "the answer with the least left of the old one. The score is how much is left: "
                "1 is all, 0 is nothing.",
                figure,
            )
        )
    shown = {key: points for key in LOSSES if len((points := series(metrics, key))[0])}
    lines = [(points, LOSSES[key][1], LOSSES[key][0]) for key, points in shown.items()]
    if lines:
        figure, axes = step_axes("Losses")
        for points, colour, label in lines:
            draw_line(axes, points, colour, "--" if label == "retain" else "-")
        lowest = min(float(points[1].min()) for points, _, _ in lines)
        highest = max(float(points[1].max()) for points, _, _ in lines)
        axes.set_ylim(min(lowest * 1.05, 0), max(highest * 1.05, 0) or 1.0)
        label_ends(axes, lines)
        ends = "; ".join(
            f"{label} loss {points[1][0]:.2f} at the first step, {points[1][-1]:.2f} at the last"
            for points, _, label in lines
        )
        plots.append(
            Plot(
                "losses",
                f"Losses over steps: {ends}.",
                " ".join(LOSSES[key][2] for key in shown),
                figure,
            )
        )
    return plots


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `key` in the lines where both are finite numbers."""
    points = [(number(row.get("step")), number(row.get(key))) for row in metrics]
    known = [(step, value) for step, value in points if step is not None and value is not None]
    return np.array([step for step, _ in known]), np.array([value for _, value in known])


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window, which is shorter at both ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_line(axes: Axes, points: tuple[np.ndarray, np.ndarray], colour: str, style: str) -> None:
    """Every step faintly under a moving mean, or dots if the steps are few."""
    steps, values = points
    if len(steps) < SMOOTHED_FROM:
        axes.plot(steps, values, style or "-", color=LIGHT[colour], marker="o", markersize=3.5)
        return
    axes.plot(steps, values, color=LIGHT[colour], linewidth=0.8, alpha=0.35)
    smooth = moving_mean(values, max(3, len(values) // 30))
    axes.plot(steps, smooth, style or "-", color=LIGHT[colour], linewidth=2)


def label_ends(axes: Axes, lines: Sequence[tuple[tuple[np.ndarray, np.ndarray], str, str]]) -> None:
    """Name and last value at the right end of each line, moved apart if they would touch."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.085
    placed: list[float] = []
    for (steps, values), colour, label in sorted(lines, key=lambda line: line[0][1][-1]):
        y = max(float(values[-1]), low + gap / 2, *(other + gap for other in placed), low)
        placed.append(y)
        axes.annotate(
            f"{label} {values[-1]:.2f}".strip(),
            (float(steps[-1]), y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT[colour],
            weight="bold",
            annotation_clip=False,
        )


def step_axes(title: str) -> tuple[Figure, Axes]:
    """Axes over steps with faint horizontal grid lines."""
    figure = Figure(figsize=(WIDTH, 2.8))
    axes = figure.add_axes((0.075, 0.16, 0.63, 0.71))
    figure.text(0.0, 0.94, title, color=LIGHT["ink"], weight="bold", size=FONT_SIZE + 0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["rule"])
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=LIGHT["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step", color=LIGHT["muted"])
    axes.margins(x=0.02)
    return figure, axes


def bars(title: str, rows: Sequence[tuple[str, Row]]) -> Figure:
    """One pair of horizontal bars per measure, with values at their ends."""
    pair, header = 0.52, 0.42  # inches
    figure = Figure(figsize=(WIDTH, header + pair * len(rows)))
    height = figure.get_figheight()
    axes = figure.add_axes((0.4, 0.0, 0.39, 1 - header / height))
    figure.text(
        0.0, 1 - 0.2 / height, title, color=LIGHT["ink"], weight="bold", size=FONT_SIZE + 0.5
    )
    for index, (label, row) in enumerate(rows):
        axes.text(
            -0.95 if label.startswith(" ") else -1.02,
            index,
            label.strip(),
            color=LIGHT["ink"],
            va="center",
            transform=axes.get_yaxis_transform(),
        )
        for offset, when, value in ((-0.19, "before", row.before), (0.19, "after", row.after)):
            if value is None:
                continue
            share = value / 100 if row.measure.percent else value
            axes.barh(index + offset, share, height=0.34, color=LIGHT[when])
            axes.annotate(
                percent_text(row, value) + (f" {when}" if index == 0 else ""),
                (max(share, 0), index + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=LIGHT["ink" if when == "after" else "muted"],
                weight="bold" if when == "after" else "normal",
                size=FONT_SIZE - 1,
                annotation_clip=False,
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color=LIGHT["rule"], linewidth=1)
    axes.axis("off")
    return figure


def percent_text(row: Row, value: float | None) -> str:
    """A value in percent with one decimal."""
    if value is None:
        return "unknown"
    return f"{value if row.measure.percent else 100 * value:.1f}"


def write_png(plot: Plot, path: Path) -> None:
    """Save as PNG on a white background."""
    with plain_style():
        FigureCanvasAgg(plot.figure)
        plot.figure.savefig(
            path,
            dpi=200,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Software": None},
        )


def write_svg(plot: Plot, path: Path) -> None:
    """Save as an SVG file."""
    with plain_style(**{"svg.hashsalt": plot.name}):
        FigureCanvasSVG(plot.figure)
        plot.figure.savefig(
            path, format="svg", bbox_inches="tight", pad_inches=0.15, metadata={"Date": None}
        )


def themed_svg(plot: Plot) -> str:
    """The figure as SVG with the colours and the font of the page around it.

    Colours become CSS variables with the palette's names. Text stays text.
    """
    out = io.StringIO()
    with plain_style(**{"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        FigureCanvasSVG(plot.figure)
        plot.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids without references would clash between the figures of a page.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def plain_style(**settings: str) -> Any:
    """matplotlib's defaults instead of the user's, so that reports are the same everywhere."""
    style: dict[Any, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith("backend")
    }
    return matplotlib.rc_context(style | {"font.size": FONT_SIZE} | settings)
