"""The effect of one setting: measures over its values, as a figure and a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from pmc_jax.data.files import write_json, write_text
from pmc_jax.errors import UserError
from pmc_jax.reporting.comparison import (
    Outcome,
    Point,
    check_comparable,
    compare,
    find_runs,
    read_outcome,
    runs_and_configurations,
)
from pmc_jax.reporting.measures import attack_samples
from pmc_jax.reporting.page import SETTING_WORDS, value_text
from pmc_jax.reporting.pareto import COLOURS, MARKERS, as_csv
from pmc_jax.reporting.plots import LIGHT, plain_style
from pmc_jax.reporting.tables import text_table
from pmc_jax.reporting.text import bulleted

LABELS = {
    "unlearn_quality": "unlearn quality, %",
    "utility": "utility, %",
    "worst_case_leakage": "worst-case leakage ({samples} samples), %",
    "secret_leak_rate_sampled": "questions whose secret comes out\n({samples} samples), %",
}
LOGARITHMIC = 8
"""Values that differ by this factor or more have a logarithmic axis."""
LEAST_SPAN = 10.0
"""The shortest axis in percent, so that small differences look small."""
LONGEST = 50
"""The longest label of which two fit side by side."""


@dataclass(frozen=True)
class Line:
    """The configurations that differ in the swept setting alone, by its value.

    Attributes:
        others: the settings in which this line differs from others, the method included.
        points: the configurations.
    """

    others: dict[str, Any]
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """The settings in which the line differs from others, as text."""
        return ", ".join(f"{key}={value_text(value)}" for key, value in self.others.items())


def write_ablation(
    paths: Sequence[Path], over: str | None, out: Path, *, redact: bool = False
) -> str:
    """Show the effect of the setting `over` in the runs at or below `paths`.

    Writes ablation.csv, ablation.json, ablation.png and ablation.svg to `out`. The same runs
    give the same bytes.

    Args:
        over: the dotted key of a setting; None: the only one in which the runs differ.
        redact: whether to mask what is to be forgotten in settings (`redaction`).

    Returns:
        The text to print.

    Raises:
        UserError: naming a path without a run, a run that cannot be compared or redacted, or a
            setting that does not vary.
    """
    finished, unfinished = find_runs(paths)
    outcomes = [read_outcome(directory, redact=redact) for directory in finished]
    points = compare(outcomes)
    over = swept(points) if over is None else over
    warnings = check_comparable(outcomes, over)
    lines = lines_over(points, over)
    rows = table(lines, over)
    write_json(out / "ablation.json", rows)
    write_text(out / "ablation.csv", as_csv(rows))
    write_figure(lines, over, samples_of(outcomes), out)
    waiting = f", {len(unfinished)} unfinished" if unfinished else ""
    text = [f"{runs_and_configurations(len(finished), len(points))}{waiting}"]
    for line in lines:
        text += ["", *([line.label] if line.label else []), printed(line, over)]
    text += ["", *bulleted(warnings)] if warnings else []
    return "\n".join([*text, "", f"Picture: {out / 'ablation.png'}"])


def swept(points: Sequence[Point]) -> str:
    """The only setting in which `points` differ.

    Raises:
        UserError: if there is none, or more than one.
    """
    keys = sorted({key for point in points for key in point.differing})
    if len(keys) != 1:
        found = f"the runs differ in {', '.join(keys)}" if keys else "no setting of the runs varies"
        raise UserError(f"{found}; expected --over with one that does")
    return keys[0]


def lines_over(points: Sequence[Point], over: str) -> list[Line]:
    """`points` by their other settings, each line in the order of the values of `over`.

    Raises:
        UserError: if `over` is the same everywhere.
    """
    if not any(over in point.differing for point in points):
        keys = sorted({key for point in points for key in point.differing})
        raise UserError(f"{over} does not vary in the runs; what does: {', '.join(keys) or 'none'}")
    several = len({point.method for point in points}) > 1
    found: dict[str, tuple[dict[str, Any], list[Point]]] = {}
    for point in points:
        others = {key: value for key, value in sorted(point.differing.items()) if key != over}
        if several:
            others = {"method": point.method} | others
        found.setdefault(repr(others), (others, []))[1].append(point)
    order = {repr(value): position for position, value in enumerate(values_of(points, over))}
    return [
        Line(others, tuple(sorted(own, key=lambda p: order[repr(value_of(p, over))])))
        for others, own in found.values()
    ]


def value_of(point: Point, over: str) -> Any:
    """The value of a setting."""
    return point.outcomes[0].settings.get(over)


def is_number(value: Any) -> bool:
    """Whether a setting's value is a number on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def values_of(points: Sequence[Point], over: str) -> list[Any]:
    """The distinct values of a setting: other values first, then numbers in rising order."""
    found = {repr(value): value for value in (value_of(point, over) for point in points)}
    numbers = sorted(value for value in found.values() if is_number(value))
    rest = sorted(
        (v for v in found.values() if not is_number(v)), key=lambda v: (v is not None, str(v))
    )
    return [*rest, *numbers]


def measured(point: Point, measure: str) -> Float[np.ndarray, " seeds"]:
    """A measure of every seed's run in percent; NaN if it is unknown."""

    def one(outcome: Outcome) -> float:
        if measure in outcome.further:
            return 100 * outcome.further[measure]
        return {"unlearn_quality": outcome.quality, "utility": outcome.utility}.get(
            measure, math.nan
        )

    return np.array([one(outcome) for outcome in point.outcomes], dtype=float)


def table(lines: Sequence[Line], over: str) -> list[dict[str, Any]]:
    """One row per configuration: settings, seeds, and mean, least and greatest of each measure."""
    rows = []
    for line in lines:
        for point in line.points:
            row = {over: value_of(point, over), **line.others, "seeds": len(point.outcomes)}
            for measure in LABELS:
                values = measured(point, measure)
                known = bool(np.isfinite(values).all())
                for name, number in (
                    ("mean", values.mean()), ("least", values.min()), ("greatest", values.max())
                ):  # fmt: skip
                    row[f"{measure}_{name}"] = float(number) if known else None
            rows.append(row)
    columns = {key: None for row in rows for key in row}
    return [{key: row.get(key) for key in columns} for row in rows]


def printed(line: Line, over: str) -> str:
    """The means of a line's configurations as a text table."""

    def mean(point: Point, measure: str) -> str:
        value = measured(point, measure).mean()
        return f"{value:.1f}" if np.isfinite(value) else "–"

    rows = [
        (value_text(value_of(point, over)), *(mean(point, measure) for measure in LABELS))
        for point in line.points
    ]
    return text_table((over, "quality", "utility", "leakage", "secrets"), [rows])


def samples_of(outcomes: Sequence[Outcome]) -> str:
    """The samples of the attack; "many" if the runs differ."""
    found = {attack_samples({"settings": outcome.settings}) for outcome in outcomes}
    return found.pop() if len(found) == 1 else "many"


def positions_of(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Position of each value (by its repr) on the axis, and whether the axis is logarithmic.

    If a value is not a number, all have the same distance.
    """
    if not all(is_number(value) for value in values):
        return {repr(value): float(position) for position, value in enumerate(values)}, False
    wide = min(values) > 0 and max(values) >= LOGARITHMIC * min(values)
    return {repr(value): float(value) for value in values}, wide


def write_figure(lines: Sequence[Line], over: str, samples: str, out: Path) -> None:
    """ablation.png and ablation.svg: every measure over the values of the setting."""
    with plain_style(**{"svg.hashsalt": "ablation"}):
        figure = Figure(figsize=(9.5, 7.4), layout="constrained")
        grid = figure.subplots(2, 2)
        for axes, measure in zip(grid.flat, LABELS, strict=True):
            draw_panel(axes, lines, over, measure)
            axes.set_ylabel(LABELS[measure].format(samples=samples))
        note = "lines: means over seeds; bars: least to greatest"
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if len(lines) > 1:
            columns = 2 if max(map(len, labels)) <= LONGEST else 1
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=columns,
                frameon=False,
                title=note,
            )
        else:
            figure.supxlabel(note, size="medium", color=LIGHT["muted"])
        FigureCanvasSVG(figure)
        figure.savefig(out / "ablation.svg", format="svg", metadata={"Date": None})
        FigureCanvasAgg(figure)
        figure.savefig(out / "ablation.png", dpi=120, metadata={"Software": None})


def limits(low: float, high: float, *, from_zero: bool) -> tuple[float, float]:
    """Limits of an axis in percent, at least `LEAST_SPAN` apart."""
    low = max(min(0.0 if from_zero else low, high - LEAST_SPAN), 0.0 if from_zero else -3.0)
    high = max(high, low + LEAST_SPAN)
    return low, min(high + 0.04 * (high - low), 103.0)


def beside(axes: Axes, number: float) -> ScaledTranslation:
    """A shift to the right by a few points, `number` times."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return ScaledTranslation(4 / 72 * number, 0, figure.dpi_scale_trans)


def draw_panel(axes: Axes, lines: Sequence[Line], over: str, measure: str) -> None:
    """One measure, with a line, a symbol and a colour for each of `lines`."""
    values = values_of([point for line in lines for point in line.points], over)
    positions, logarithmic = positions_of(values)
    if logarithmic:
        axes.set_xscale("log")
    for index, line in enumerate(lines):
        found = [measured(point, measure) for point in line.points]
        across = [positions[repr(value_of(point, over))] for point in line.points]
        means = np.array([each.mean() for each in found])
        spread = [
            [mean - each.min() for mean, each in zip(means, found, strict=True)],
            [each.max() - mean for mean, each in zip(means, found, strict=True)],
        ]
        axes.errorbar(
            across, means, spread,
            fmt=MARKERS[index % len(MARKERS)], linestyle="-", linewidth=1.2, capsize=3,
            color=COLOURS[index % len(COLOURS)], label=line.label or None,
            # Side by side, so that bars do not hide each other.
            transform=axes.transData + beside(axes, index - (len(lines) - 1) / 2),
        )  # fmt: skip
        axes.update_datalim(
            [(x, y) for x, each in zip(across, found, strict=True) for y in each if np.isfinite(y)]
        )
    axes.set_xticks(
        [positions[repr(value)] for value in values], [value_text(value) for value in values]
    )
    axes.set_xticks([], minor=True)
    axes.set_xlabel(SETTING_WORDS.get(over, over))
    axes.margins(x=0.08, y=0.12)
    axes.autoscale_view()
    axes.set_ylim(*limits(*axes.get_ylim(), from_zero="leak" in measure))
    axes.grid(color=LIGHT["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
