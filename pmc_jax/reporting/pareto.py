"""The comparison of methods as figures, tables and one self-contained page."""

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from pmc_jax.data.files import write_json, write_text
from pmc_jax.reporting.comparison import (
    Point,
    check_comparable,
    compare,
    enough,
    find_runs,
    front,
    hypervolume,
    hypervolume_interval,
    read_outcome,
    reservations,
    run_table,
    runs_and_configurations,
    target_utility,
)
from pmc_jax.reporting.page import value_text
from pmc_jax.reporting.plots import LIGHT, PALETTE, plain_style
from pmc_jax.reporting.tables import text_table
from pmc_jax.reporting.templates import page_template
from pmc_jax.reporting.text import bulleted

MARKERS = "osD^vPX*<>ph"
COLOURS = (
    "#0b63a8", "#bd4f0a", "#17795a", "#a8508c", "#8a6d00", "#2f9fd0", "#6b4fb3", "#b3273a",
    "#4d7c0f", "#5c6370", "#0f766e", "#9a3412",
)  # fmt: skip
DARK = (
    "#62b0f0", "#f39a58", "#5ccaa2", "#dd95d3", "#d3b24c", "#8fd3f4", "#b3a1ee", "#f28b94",
    "#a3d05f", "#a6acb6", "#5eead4", "#fdba74",
)  # fmt: skip
"""The same colours for a dark page."""
LABELS = {
    "quality": "unlearn quality, %",
    "utility": "utility, %",
    "minutes": "minutes of the method's own work",
    "steps": "optimizer steps",
}
PANELS = (
    ("utility", "quality"),
    ("minutes", "quality"),
    ("minutes", "utility"),
    ("steps", "quality"),
    ("steps", "utility"),
)
FIGURES = ("pareto.png", "pareto.svg")
HOVER = Path(__file__).with_name("hover.js")
MARK = " *"
"""After the name of a method whose settings were chosen for another one."""
SIZE, MARGIN = (460.0, 330.0), (52.0, 14.0, 44.0, 12.0)  # left, right, below, above


@dataclass(frozen=True)
class Panel:
    """A chart of the page in pixels: marks, fronts, ticks, and the target model's utility."""

    title: str
    x_label: str
    y_label: str
    marks: list[dict[str, Any]]
    lines: list[dict[str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    target: tuple[float, float, float, float] | None


def write_comparison(paths: Sequence[Path], out: Path, *, redact: bool = False) -> str:
    """Compare the runs at or below `paths`.

    Writes runs.csv, runs.json, methods.json, pareto.png, pareto.svg and index.html to `out`;
    without the figures if the runs are too few for a front. The same runs give the same bytes.

    Args:
        redact: whether to mask what is to be forgotten in settings and names (`redaction`).

    Returns:
        The text to print.

    Raises:
        UserError: naming a path without a run, or a run that cannot be compared or redacted.
    """
    finished, unfinished = find_runs(paths)
    outcomes = [read_outcome(directory, redact=redact) for directory in finished]
    warnings = check_comparable(outcomes)
    points = compare(outcomes)
    rows, methods, target = (
        run_table(outcomes, points),
        method_rows(points),
        target_utility(outcomes),
    )
    write_json(out / "runs.json", rows)
    write_text(out / "runs.csv", as_csv(rows))
    write_json(out / "methods.json", methods)
    if enough(points):
        write_figure(points, target, out)
    else:
        for name in FIGURES:  # of an earlier comparison in the same place
            (out / name).unlink(missing_ok=True)
    warnings += reservations(points)
    write_text(out / "index.html", render(points, methods, target, len(unfinished), warnings))
    waiting = f", {len(unfinished)} unfinished" if unfinished else ""
    table = text_table(
        ("method", "best quality", "its utility", "hypervolume", "95% interval", "configurations"),
        [[
            (marked_name(row), f"{row['best'][0]:.1f}", f"{row['best'][1]:.1f}",
             f"{row['hypervolume']:.3f}", interval_text(row), str(row["configurations"]))
            for row in methods
        ]],
    )  # fmt: skip
    notes = bulleted(warnings)
    marked = f"{MARK.strip()} settings chosen for another method"
    return "\n".join(
        [
            f"{runs_and_configurations(len(finished), len(points))}{waiting}\n",
            table,
            *([marked] if any(row["untuned"] for row in methods) else []),
            *(["", *notes] if notes else []),
            f"\nPage: {out / 'index.html'}",
        ]
    )


def marked_name(row: dict[str, Any]) -> str:
    """A method's name, marked if its settings were chosen for another method."""
    return f"{row['method']}{MARK if row['untuned'] else ''}"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with a header; all rows have the same keys."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def method_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per method: its best configuration, hypervolume with interval, and counts.

    The best configuration is the one in which the smaller of quality and utility is largest.
    """
    found = []
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        found.append(
            {
                "method": method,
                "best": max(
                    ((point.mean("quality"), point.mean("utility")) for point in own),
                    key=lambda pair: (min(pair), max(pair)),
                ),
                "untuned": any(point.untuned for point in own),
                "configurations": len(own),
                "runs": sum(len(point.outcomes) for point in own),
                "hypervolume": hypervolume(point.objectives for point in own),
                "interval": hypervolume_interval(own),
                "undominated": sum(point.undominated for point in own),
            }
        )
    return found


def interval_text(row: dict[str, Any]) -> str:
    """The interval of a hypervolume as text."""
    interval = row["interval"]
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "(single seeds)"


def looks(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Symbol and colour of each method."""
    methods = dict.fromkeys(point.method for point in points)
    return {
        method: (MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)])
        for i, method in enumerate(methods)
    }


def themed(colour: str) -> str:
    """The variable of the page with this colour; it has another value on a dark page."""
    return f"var(--method-{COLOURS.index(colour)})"


def write_figure(points: Sequence[Point], target: float | None, out: Path) -> None:
    """pareto.png and pareto.svg: every panel, with the spread over seeds."""
    with plain_style(**{"svg.hashsalt": "pareto"}):
        figure = Figure(figsize=(13, 8.2), layout="constrained")
        grid = figure.subplots(2, 3)
        panels = [grid[0, 0], grid[0, 1], grid[1, 1], grid[0, 2], grid[1, 2]]
        for axes, (x, y) in zip(panels, PANELS, strict=True):
            draw_panel(axes, points, x, y, target)
        grid[1, 0].axis("off")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        note = "filled: on its method's front\nhollow: dominated within its method\n"
        note += "ringed: dominated by no method\nbars: least to greatest over seeds"
        grid[1, 0].legend(
            handles, labels, loc="upper left", frameon=False, ncols=2, title=note,
            alignment="left",
        )  # fmt: skip
        FigureCanvasSVG(figure)
        figure.savefig(out / "pareto.svg", format="svg", metadata={"Date": None})
        FigureCanvasAgg(figure)
        figure.savefig(out / "pareto.png", dpi=120, metadata={"Software": None})


def draw_panel(axes: Axes, points: Sequence[Point], x: str, y: str, target: float | None) -> None:
    """One panel; the first one shows the fronts."""
    look = looks(points)
    for method, (marker, colour) in look.items():
        for index, point in enumerate(p for p in points if p.method == method):
            spread: dict[str, Any] = {
                f"{axis}err": [[side] for side in point.half_range(name)]
                for axis, name in (("x", x), ("y", y))
            }
            axes.errorbar(
                point.mean(x), point.mean(y), **spread, fmt=marker, color=colour,
                markersize=7, elinewidth=0.8, alpha=0.9,
                markerfacecolor=colour if point.on_front else "white",
                label=method if index == 0 else None,
            )  # fmt: skip
            if point.undominated:
                axes.plot(
                    point.mean(x), point.mean(y), "o", markersize=13, markerfacecolor="none",
                    markeredgecolor=LIGHT["ink"], markeredgewidth=1,
                )  # fmt: skip
        if (x, y) == PANELS[0]:
            line = [point.objectives for point in front(points, method)]
            axes.step(*zip(*line, strict=True), where="pre", color=colour, linewidth=1)
    if target is not None and "utility" in (x, y):
        draw = axes.axvline if x == "utility" else axes.axhline
        draw(
            target, color=LIGHT["muted"], linestyle="--", linewidth=1,
            label="utility of the target model" if (x, y) == PANELS[0] else None,
        )  # fmt: skip
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(LABELS[y])
    axes.set_ylim(-3, 103)
    if x == "utility":
        axes.set_xlim(-3, 103)
    else:
        axes.set_xlim(left=0)
    axes.grid(color=LIGHT["rule"], linewidth=0.6)
    axes.set_axisbelow(True)


def symbol(marker: str, size: float = 5.0) -> str:
    """SVG path data of a matplotlib marker, `size` pixels from centre to edge."""
    style = MarkerStyle(marker)
    outline = style.get_path().transformed(
        style.get_transform() + Affine2D().scale(2 * size, -2 * size)
    )
    letters = {
        Outline.MOVETO: "M",
        Outline.LINETO: "L",
        Outline.CURVE3: "Q",
        Outline.CURVE4: "C",
        Outline.CLOSEPOLY: "Z",
    }
    pieces = []
    for vertices, code in outline.iter_segments(simplify=False):
        numbers = "" if code == Outline.CLOSEPOLY else " ".join(f"{v:.2f}" for v in vertices)
        pieces.append(letters[code] + numbers)
    return "".join(pieces)


def hover_lines(point: Point) -> list[str]:
    """The lines that appear when the pointer is over a mark."""
    seeds = ", ".join(str(outcome.seed) for outcome in point.outcomes)
    numbers = [
        f"{LABELS[name]}: {point.mean(name):.1f} "
        f"({point.values(name).min():.1f} to {point.values(name).max():.1f})"
        for name in LABELS
    ]
    settings = [f"{key}: {value_text(value)}" for key, value in point.differing.items()]
    return [f"{point.method}, seeds {seeds}", *numbers, *settings]


def panel(points: Sequence[Point], x: str, y: str, target: float | None) -> Panel:
    """A chart of the page."""
    width, height = SIZE
    left, right, below, above = MARGIN
    largest = max((value for p in points for value in p.values(x)), default=1.0) or 1.0
    top = 100.0 if x == "utility" else 1.05 * largest

    def across(value: float) -> float:
        return round(left + value / top * (width - left - right), 1)

    def up(value: float) -> float:
        return round(height - below - value / 100 * (height - below - above), 1)

    look = looks(points)
    marks = [
        {
            "path": symbol(look[point.method][0]),
            "colour": themed(look[point.method][1]),
            "x": across(point.mean(x)), "y": up(point.mean(y)),
            "bars": [
                (across(point.values(x).min()), up(point.mean(y)),
                 across(point.values(x).max()), up(point.mean(y))),
                (across(point.mean(x)), up(point.values(y).min()),
                 across(point.mean(x)), up(point.values(y).max())),
            ],
            "filled": point.on_front, "ringed": point.undominated,
            "hover": "\n".join(hover_lines(point)),
        }
        for point in points
    ]  # fmt: skip
    lines = []
    for method, (_, colour) in look.items() if (x, y) == PANELS[0] else ():
        corners = [point.objectives for point in front(points, method)]
        text = " ".join(
            f"{across(u)},{up(q)}"
            for i, (u, q) in enumerate(corners)
            for u, q in ([(corners[i - 1][0], q), (u, q)] if i else [(u, q)])
        )
        lines.append({"colour": themed(colour), "points": text})
    line = None
    if target is not None and x == "utility":
        line = (across(target), up(0), across(target), up(100))
    elif target is not None and y == "utility":
        line = (across(0), up(target), across(top), up(target))
    return Panel(
        title=f"{LABELS[y].partition(',')[0]} against {LABELS[x].partition(',')[0]}".capitalize(),
        x_label=LABELS[x],
        y_label=LABELS[y],
        marks=marks,
        lines=lines,
        x_ticks=[
            (across(value), f"{value:g}")
            for value in MaxNLocator(4).tick_values(0, top)
            if 0 <= value <= top
        ],
        y_ticks=[(up(25 * i), str(25 * i)) for i in range(5)],
        target=line,
    )


def render(
    points: Sequence[Point],
    methods: Sequence[dict[str, Any]],
    target: float | None,
    unfinished: int,
    warnings: Sequence[str],
) -> str:
    """The page's HTML; everything from the runs' files is escaped by the template.

    Args:
        warnings: why the comparison may be unfair, in sentences.
    """
    look = looks(points)
    script = HOVER.read_text(encoding="utf-8")
    return page_template("pareto.html.j2").render(
        panels=[panel(points, x, y, target) for x, y in PANELS] if enough(points) else [],
        warnings=warnings,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        mark=MARK,
        colours=list(zip(COLOURS, DARK, strict=True)),
        methods=[
            {**row, "path": symbol(marker), "colour": themed(colour),
             "interval": interval_text(row)}
            for row in methods
            for marker, colour in [look[row["method"]]]
        ],
        points=points,
        differ=any(point.differing for point in points),
        settings_text=lambda point: ", ".join(
            f"{key}={value_text(value)}" for key, value in point.differing.items()
        ),
        target=target,
        unfinished=unfinished,
        width=SIZE[0], height=SIZE[1], palette=PALETTE,
    )  # fmt: skip
