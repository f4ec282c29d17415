"""The training curves of the runs that the evaluated models came from."""

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
        "Training: mean selected score", "mean over questions",
        "How much of the old answer was left in the answers that the model was trained on.",
    ),
    "forget_loss": (
        "Training: loss on the forget questions", "loss",
        "Each method has its own loss on forget questions, and some losses fall below zero: "
        "compare shapes, not heights.",
    ),
    "retain_loss": (
        "Training: loss on the retain examples", "loss",
        "For most methods the loss of the right answers, in nats per token.",
    ),
}  # fmt: skip
"""By key of `metrics.jsonl`: title, axis, and caption."""


def training_curves(model: Path) -> dict[str, dict[str, list[float]]]:
    """Steps and values of each curve, from the run that wrote the directory `model`.

    Empty if no run did.
    """
    rows = []
    if model.name == "model":
        rows = read_objects(model.parent / "metrics.jsonl", missing_ok=True, finite=True)
    found = {}
    for key in CURVES:
        steps, values = series(rows, key)
        if len(steps):
            found[key] = {"steps": steps.tolist(), "values": values.tolist()}
    return found


def curve_plots(files: EvaluationFiles) -> list[Plot]:
    """A figure for each curve that any model's run has."""
    plots = []
    for name, (title, y_title, caption) in CURVES.items():
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
