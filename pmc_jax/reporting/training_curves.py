"""The training curves of the runs that examined models came from."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from pmc_jax.data.files import read_objects
from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.model_lines import Line, model_axes, shares
from pmc_jax.reporting.plots import LIGHT, Plot, series

SCORE = "mean_selected_score"
CURVES = {
    SCORE: (
        (SCORE,), "Training: mean selected score", "mean over questions",
        "How much of the old answer was left in the answers that the model was trained on.",
    ),
    "forget_side": (
        ("collapse_loss", "forget_loss"), "Training: loss on the forget questions", "loss",
        "PMC: of its own selected answers, in nats per token. Other methods have losses of their "
        "own, some of which fall below zero: compare shapes, not heights.",
    ),
    "retain_loss": (
        ("retain_loss",), "Training: loss on the rows to keep", "loss",
        "Of the right answers to questions to keep, in nats per token, for most methods.",
    ),
}  # fmt: skip
"""By name: keys of `metrics.jsonl`, of which a method has one, title, axis, and caption."""


def training_curves(model: Path) -> dict[str, dict[str, list[float]]]:
    """Steps and values of each curve, from the run whose `model` directory this is, if any."""
    path = model.parent / "metrics.jsonl"
    rows = read_objects(path, missing_ok=True, finite=True) if model.name == "model" else []
    found = {}
    for name, (keys, *_) in CURVES.items():
        for key in keys:
            steps, values = series(rows, key)
            if len(steps):
                found[name] = {"steps": steps.tolist(), "values": values.tolist()}
    return found


def curve_plots(files: EvaluationFiles) -> list[Plot]:
    """A figure for each curve that any model's run has."""
    plots = []
    for name, (_, title, y_title, caption) in CURVES.items():
        found = {m: p[name] for m, p in files.curves("training").items() if name in p}
        if found:
            plots.append(curve_plot(files, found, name, title, y_title, caption))
    return plots


def curve_plot(
    files: EvaluationFiles, found: dict[str, Any], name: str, title: str, y_title: str, caption: str
) -> Plot:
    """One curve of all models that have it."""
    lines = [
        Line(model, np.array(curve["steps"], float), np.array(curve["values"], float))
        for model, curve in found.items()
    ]
    figure, axes = model_axes(files, title, y_title, lines)
    if name == SCORE:
        shares(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step", color=LIGHT["muted"])
    ends = "; ".join(
        f"{line.model}: {line.y[0]:.2f} at the first step, {line.y[-1]:.2f} at the last"
        for line in lines
    )
    return Plot(f"training_{name}", f"{title}, over steps. {ends}.", caption, figure)
