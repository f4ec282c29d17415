"""Axes with one line per model, which differ in colour, dashes and symbol."""

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
from scipy.optimize import isotonic_regression

from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.plots import FONT_SIZE, LIGHT, WIDTH
from pmc_jax.reporting.text import short_names

COLOURS = ("after", "collapse", "retain", "plum", "ochre")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 3)))
MARKERS = "osD^vP"
LEGEND_ROW, HEADER, TITLE, PLOT_HEIGHT, FOOTER = 0.24, 0.36, 0.25, 2.1, 0.5  # inches
LEFT, BREADTH = 0.105, 0.74  # left edge and width of the axes, as shares of the figure
THIN = 0.9  # points; width of bounds and of chance
AXIS_LOW, AXIS_RANGE = -0.03, 1.08
LABEL_GAP = 0.075  # of a vertical axis from 0 to 1; the height of a line of text


@dataclasses.dataclass(frozen=True)
class Look:
    """How a model's line is drawn; `colour` is a name in the palette."""

    colour: str
    dash: Any
    marker: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One model's points.

    Attributes:
        model: the model's name.
        x: positions of the points.
        y: values of the points.
        end: text at the last point.
        bound: certified upper bounds of the values, drawn as a thin line.
    """

    model: str
    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    end: str = ""
    bound: Float[np.ndarray, " points"] | None = None


def model_looks(files: EvaluationFiles) -> dict[str, Look]:
    """A look for each model: grey dots before unlearning, a distinct look for all others."""
    looks: dict[str, Look] = {}
    if files.before is not None:
        looks[files.before] = Look("muted", (0, (1, 1.2)), "X")
    others = [model for model in files.models if model not in looks]
    others.sort(key=lambda model: model != files.evaluated)
    for i, model in enumerate(others):
        looks[model] = Look(
            COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
        )
    return looks


def model_axes(
    files: EvaluationFiles,
    title: str,
    y_title: str,
    lines: Sequence[Line],
    *,
    thin_line: str = "",
    steps: str = "default",
) -> tuple[Figure, Axes]:
    """Axes with the models' lines, a legend above, and the last values at the right.

    Args:
        y_title: title above the vertical axis.
        thin_line: description of thin lines in the legend.
        steps: matplotlib's `drawstyle` of the lines.
    """
    looks, names = model_looks(files), short_names(files.models)
    legend = LEGEND_ROW * (len(lines) + bool(thin_line))
    height = HEADER + legend + TITLE + PLOT_HEIGHT + FOOTER
    figure = Figure(figsize=(WIDTH, height))
    bottom = FOOTER / height
    axes = figure.add_axes((LEFT, bottom, BREADTH, PLOT_HEIGHT / height))
    figure.text(
        0.0, 1 - 0.2 / height, title, color=LIGHT["ink"], weight="bold", size=FONT_SIZE + 0.5
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["rule"])
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=LIGHT["muted"])
    axes.set_ylabel(y_title, color=LIGHT["muted"], rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(-LEFT / BREADTH, 1.05)
    handles = []
    for line in lines:
        look = looks[line.model]
        style: dict[str, Any] = {
            "color": LIGHT[look.colour], "linestyle": look.dash, "marker": look.marker,
            "markersize": 5, "linewidth": 1.8,
        }  # fmt: skip
        axes.plot(line.x, line.y, drawstyle=steps, markevery=marked_points(line), **style)
        if line.bound is not None:
            axes.plot(
                line.x, line.bound, color=style["color"], drawstyle=steps, linewidth=THIN
            )  # fmt: skip
        label = names[line.model].replace("$", r"\$")  # no formula
        handles.append(Line2D([], [], label=label, **style))
    if thin_line:
        handles.append(Line2D([], [], label=thin_line, color=LIGHT["ink"], linewidth=THIN))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 1 - HEADER / height),
        frameon=False, borderaxespad=0, borderpad=0, labelspacing=0.35, handlelength=3.4,
        labelcolor=LIGHT["ink"],
    )  # fmt: skip
    axes.margins(x=0.02)
    end_values(axes, lines, looks)
    return figure, axes


def marked_points(line: Line) -> list[int]:
    """About eight points with a symbol, the last one included."""
    count = len(line.x)
    if count <= 10:
        return list(range(count))
    if line.x[0] >= 1 and line.x[-1] >= 20:  # over a logarithmic axis
        return sorted({round(x) - 1 for x in np.geomspace(1, count, 8)})
    return sorted({round(i) for i in np.linspace(0, count - 1, 9)})


def end_values(axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """The last values at the right, moved apart if they would touch, each tied to its line.

    A value that several lines share is written once, in black.
    """
    ends = sorted((line for line in lines if line.end), key=lambda line: line.y[-1])
    groups = [list(same) for _, same in groupby(ends, key=lambda line: line.end)]
    heights = np.array([float(group[0].y[-1]) for group in groups])
    for group, y, moved in zip(groups, heights, apart(heights, LABEL_GAP) - heights, strict=True):
        colour = LIGHT[looks[group[0].model].colour if len(group) == 1 else "ink"]
        tie = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            group[0].end, (float(group[0].x[-1]), y),
            xytext=(14, moved / AXIS_RANGE * PLOT_HEIGHT * 72), textcoords="offset points",
            va="center", color=colour, weight="bold", size=FONT_SIZE - 0.5,
            arrowprops=tie if abs(moved) > 0.01 else None, annotation_clip=False,
        )  # fmt: skip


def apart(values: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Sorted values moved to be at least `gap` apart, by the least sum of squares."""
    if not len(values):
        return values
    steps = gap * np.arange(len(values))
    return np.asarray(isotonic_regression(values - steps).x) + steps


def in_percent() -> FuncFormatter:
    """Labels of an axis of shares."""
    return FuncFormatter(lambda value, _: f"{100 * value:g}%")


def shares(axes: Axes) -> None:
    """A vertical axis from 0 to 1, in percent."""
    axes.set_ylim(AXIS_LOW, AXIS_LOW + AXIS_RANGE)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(in_percent())


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
