"""The figures of the page `results.md`."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from real_model_runs import (
    ATTACKS,
    CURVES,
    Run,
    compared,
    known_curves,
    leaking,
    named,
    utility_of_target,
)

from pmc_jax.reporting.comparison import Point, compare
from pmc_jax.reporting.pareto import draw_panel, looks
from pmc_jax.reporting.plots import LIGHT, plain_style


def draw_fronts(points: Sequence[Point], runs: Sequence[Run], path: Path) -> None:
    """Unlearn quality against utility, with the front of each method (the paper's Figure 3)."""
    with plain_style():
        figure = Figure(figsize=(7.5, 5.2), layout="constrained")
        axes = figure.subplots()
        draw_panel(axes, points, "utility", "quality", utility_of_target(runs))
        values = [point.mean("utility") for point in points]
        for name, marker in (("target", "*"), ("reference", "P")):
            if (run := named(runs, name)) is not None:
                x, y = run.measures()["utility"], run.measures()["unlearn_quality"]
                values.append(x)
                axes.plot(
                    x, y, marker, color=LIGHT["ink"], markersize=12, linestyle="",
                    label={"target": "target model", "reference": "never saw the forget set"}[name],
                )  # fmt: skip
        axes.set_xlim(min(values) - 3, max(values) + 3)
        qualities = [point.mean("quality") for point in points]
        axes.set_ylim(max(min(30, *qualities) - 5, 0), 101)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)


def draw_time(points: Sequence[Point], target: float | None, path: Path) -> None:
    """Unlearn quality and utility against the CPU time of the training command."""
    with plain_style():
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, measure in zip(figure.subplots(1, 2), ("quality", "utility"), strict=True):
            draw_panel(axes, points, "minutes", measure, target)
            axes.set_xlabel("CPU minutes of the training command, cores added")
            limits = [point.mean(measure) for point in points]
            if measure == "utility" and target is not None:
                limits.append(target)
            axes.set_ylim(max(min(limits) - 5, 0), min(max(limits) + 5, 101))
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)


def draw_leakage(runs: Sequence[Run], path: Path) -> None:
    """The most revealing of m answers, under sampling and prefilling (Figure 4)."""
    keys, look = known_curves(runs), looks(compare([run.outcome(None) for run in compared(runs)]))
    with plain_style():
        figure = Figure(figsize=(9, 3.6 * len(keys)), layout="constrained")
        panels = figure.subplots(len(keys), len(ATTACKS), sharey="row", squeeze=False)
        for (row, key), (column, attack) in itertools.product(enumerate(keys), enumerate(ATTACKS)):
            axes = panels[row, column]
            for name, run in leaking(runs):
                curve = run.curve(attack, key)
                marker, colour = look.get(name, ("", LIGHT["ink"]))
                axes.plot(
                    range(1, len(curve) + 1), [100 * value for value in curve], label=name,
                    color=colour, marker=marker, markevery=[len(curve) - 1] if curve else None,
                    linestyle={"target": "--", "reference": ":"}.get(name, "-"),
                )  # fmt: skip
            axes.set(xscale="log", xlabel="answers to a question, m", ylim=(0, 101))
            axes.set_title(ATTACKS[attack])
            axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(color=LIGHT["rule"], linewidth=0.6)
            if column == 0:
                axes.set_ylabel(f"largest {CURVES[key]} among m, %")
        panels[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)


def draw_suppression(runs: Sequence[Run], path: Path) -> None:
    """The attack that chooses the least likely option, and its probability (Figure 5)."""
    look = looks(compare([run.outcome(None) for run in compared(runs)]))
    found = [(name, run, part) for name, run in leaking(runs) if (part := run.least_likely)]
    with plain_style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        accuracy, minima = figure.subplots(1, 2)
        for name, _, part in found:
            style = {
                "color": look.get(name, ("", LIGHT["ink"]))[1], "label": name,
                "linestyle": {"target": "--", "reference": ":"}.get(name, "-"),
            }  # fmt: skip
            x, y = zip(*part["accuracy_by_quantile"], strict=True)
            accuracy.plot([100 * v for v in x], [100 * v for v in y], **style)
            values = [100 * value for value in part["minima"]]
            shares = [100 * (i + 1) / len(values) for i in range(len(values))]
            minima.step(values, shares, where="post", **style)
        if found:
            accuracy.axhline(100 * found[0][2]["chance"], color=LIGHT["muted"], linewidth=1)
        accuracy.set(
            xlabel="share of questions, most suppressed first, %", ylim=(-1, 101),
            ylabel="least likely option is right, %", title="least-likely attack",
        )  # fmt: skip
        minima.set(
            xlabel="at most this probability, %", ylabel="share of questions, %", ylim=(0, 101),
            title="probability of the least likely option",
        )  # fmt: skip
        minima.set_xlim(left=0)
        for axes in (accuracy, minima):
            axes.grid(color=LIGHT["rule"], linewidth=0.6)
        minima.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same numbers give the same bytes."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})
