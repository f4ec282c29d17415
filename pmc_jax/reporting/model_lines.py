"""Axes with one line a model, told apart by colour, by dashes and by symbol."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.plots import FONT_SIZE, LIGHT, WIDTH

COLOURS = ("after", "collapse", "retain", "plum", "ochre")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 3)))
MARKERS = "osD^vP"
LEGEND_ROW, HEADER, PLOT_HEIGHT, FOOTER = 0.24, 0.36, 2.1, 0.5  # inches
LONGEST_NAME = 28


@dataclasses.dataclass(frozen=True)
class Look:
    """How a model's line is drawn; `colour` is a name of the palette."""

    colour: str
    dash: Any
    marker: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One model's points; `end` is written at the last of them."""

    model: str
    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    end: str = ""


def model_looks(files: EvaluationFiles) -> dict[str, Look]:
    """The model before unlearning in grey and dotted, all others each in a look of its own."""
    looks: dict[str, Look] = {}
    if files.before is not None:
        looks[files.before] = Look("muted", (0, (1, 1.2)), "X")
    others = [model for model in files.models if model not in looks]
    others.sort(key=lambda model: model != files.examined)
    for i, model in enumerate(others):
        looks[model] = Look(
            COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
        )
    return looks


def plain_name(model: str) -> str:
    """A model's name as matplotlib draws it: no formula, not too long.

    Runs of a sweep differ in the middle or at the end, so that what is left out is in the middle.
    """
    half = (LONGEST_NAME - 1) // 2
    short = model if len(model) <= LONGEST_NAME else f"{model[:half]}…{model[-half:]}"
    return short.replace("$", r"\$")


def model_axes(
    files: EvaluationFiles,
    title: str,
    lines: Sequence[Line],
    *,
    chance: float | None = None,
    steps: str = "default",
) -> tuple[Figure, Axes]:
    """Axes with the models' lines, a legend above them, and the last values at their ends."""
    looks = model_looks(files)
    legend = LEGEND_ROW * len(lines)
    height = HEADER + legend + PLOT_HEIGHT + FOOTER
    figure = Figure(figsize=(WIDTH, height))
    bottom = FOOTER / height
    axes = figure.add_axes((0.105, bottom, 0.79, PLOT_HEIGHT / height))
    figure.text(
        0.0, 1 - 0.2 / height, title, color=LIGHT["ink"], weight="bold", size=FONT_SIZE + 0.5
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["rule"])
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=LIGHT["muted"])
    if chance is not None:
        axes.axhline(chance, color=LIGHT["ink"], linewidth=0.9)
    handles = []
    for line in lines:
        look = looks[line.model]
        style: dict[str, Any] = {
            "color": LIGHT[look.colour], "linestyle": look.dash, "marker": look.marker,
            "markersize": 5, "linewidth": 1.8,
        }  # fmt: skip
        axes.plot(line.x, line.y, drawstyle=steps, markevery=marked_points(line), **style)
        handles.append(Line2D([], [], label=plain_name(line.model), **style))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 1 - HEADER / height),
        frameon=False, borderaxespad=0, borderpad=0, labelspacing=0.35, handlelength=3.4,
        labelcolor=LIGHT["ink"],
    )  # fmt: skip
    axes.margins(x=0.02)
    end_values(axes, lines, looks)
    return figure, axes


def marked_points(line: Line) -> list[int]:
    """About eight points, the last among them, for the symbol."""
    count = len(line.x)
    if count <= 10:
        return list(range(count))
    if line.x[0] >= 1 and line.x[-1] >= 20:  # over a logarithmic axis
        return sorted({round(x) - 1 for x in np.geomspace(1, count, 8)})
    return sorted({round(i) for i in np.linspace(0, count - 1, 9)})


def end_values(axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """The last values at the right, moved apart where they would touch.

    What several lines end with is written once, in the colour of none.
    """
    ends = sorted((line for line in lines if line.end), key=lambda line: line.y[-1])
    placed: list[float] = []
    for text, same in groupby(ends, key=lambda line: line.end):
        shared = list(same)
        y = max(float(shared[0].y[-1]), *(other + 0.085 for other in placed), 0.0)
        placed.append(y)
        colour = looks[shared[0].model].colour if len(shared) == 1 else "ink"
        axes.annotate(
            text, (float(shared[0].x[-1]), y), xytext=(8, 0), textcoords="offset points",
            va="center", color=LIGHT[colour], weight="bold", size=FONT_SIZE - 0.5,
            annotation_clip=False,
        )  # fmt: skip


def shares(axes: Axes) -> None:
    """A vertical axis from 0 to 1."""
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))


def log_steps(axes: Axes, largest: float, label: str) -> None:
    """A logarithmic horizontal axis of whole numbers from 1 on."""
    axes.set_xlabel(label, color=LIGHT["muted"])
    if largest < 2:
        axes.set_xticks([1.0])
        return
    axes.set_xscale("log")
    ticks = [t for power in range(7) for t in (10**power, 2 * 10**power, 5 * 10**power)]
    axes.set_xticks([float(tick) for tick in ticks if tick <= largest])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
