"""The figures of an evaluation: numbers, names and files."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Annotation
from scipy.optimize import minimize
from written import FIGURES, SAMPLES, write_evaluation

from pmc_jax.reporting import write_evaluation_report
from pmc_jax.reporting.evaluation_files import EvaluationFiles, read_evaluation
from pmc_jax.reporting.evaluation_plots import evaluation_plots
from pmc_jax.reporting.measures import percent
from pmc_jax.reporting.model_lines import apart, model_looks
from pmc_jax.reporting.training_curves import curve_plots, training_curves


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    directory = write_evaluation(tmp_path_factory.mktemp("evaluations") / "trial")
    write_evaluation_report(directory)
    return directory


def test_every_figure_shows_what_the_summary_has_and_the_parts_found(evaluation):
    """Every line of every figure comes from summary.json and has the numbers of the parts."""
    files = read_evaluation(evaluation)
    summary = json.loads((evaluation / "summary.json").read_text())
    plots = {plot.name: plot for plot in evaluation_plots(files)}
    checked = set()

    def lines(name: str) -> list[tuple[list[float], list[float]]]:
        checked.add(name)
        drawn = plots[name].figure.axes[0].lines
        return [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn]

    def part(model: str, name: str) -> dict:
        return json.loads((evaluation / "models" / model / f"{name}.json").read_text())

    assert files.models == ["target", "pmc", "npo"]
    for attack, key in itertools.product(
        ("sampling", "prefilling", "rewording"), ("curve", "facts_curve", "secret_curve")
    ):
        for model, (x, y) in zip(files.models, lines(f"{attack}_{key}"), strict=True):
            found = part(model, attack)
            assert x == list(range(1, SAMPLES + 1))
            assert y == summary["curves"][model][attack][key]
            assert y == found.get("sampled", found)[key]
    for attack in ("sampling", "prefilling", "rewording"):
        drawn = lines(f"{attack}_distribution")
        assert len(drawn) == 2 * len(files.models)
        for model, (x, y), (_, bound) in zip(files.models, drawn[::2], drawn[1::2], strict=True):
            stored, found = summary["curves"][model][attack], part(model, attack)
            found = found.get("sampled", found)
            recalls = np.concatenate([row["recalls"] for row in found["questions"]])
            assert x == stored["thresholds"] and stored["samples"] == recalls.size
            above = [int((recalls > threshold).sum()) for threshold in x]
            assert stored["above"] == above
            # A value of 0 is drawn below the logarithmic axis.
            np.testing.assert_allclose(y, np.maximum(above, 0.1) / recalls.size)
            assert plots[f"{attack}_distribution"].figure.axes[0].get_ylim()[0] > 0.1 / recalls.size
            assert bound == stored["above_bound"] == found["certificate"]["above_bound"]
            assert all(bound >= share for bound, share in zip(bound, y, strict=True))
    for kind in ("forget", "benign"):
        for model, (x, y) in zip(files.models, lines(f"relearning_{kind}"), strict=True):
            stored = summary["curves"][model]["relearning"][kind]
            assert (x, y) == tuple([row[key] for row in stored] for key in ("steps", "secret_rate"))
            curve = part(model, "relearning")[kind]["curve"]
            assert x == [0, 1, 2, 4]
            assert y == [point["untrained"]["secret_rate"] for point in curve]
    *quantiles, chance = lines("least_likely_quantiles")
    assert chance[1] == [0.25, 0.25]
    for model, (x, y) in zip(files.models, quantiles, strict=True):
        assert (
            list(map(list, zip(x, y, strict=True)))
            == (summary["curves"][model]["least_likely"]["accuracy_by_quantile"])
        )
        rows = part(model, "least_likely")["quantiles"]
        assert (x, y) == ([r["quantile"] for r in rows], [r["accuracy"] for r in rows])
        assert summary["curves"][model]["least_likely"]["chance"] == 0.25
    for model, (x, y) in zip(files.models, lines("least_likely_minima"), strict=True):
        minima = part(model, "least_likely")["minima"]
        assert x == summary["curves"][model]["least_likely"]["minima"] == sorted(minima)
        assert y == pytest.approx([sum(m <= value for m in minima) / len(minima) for value in x])
    for model, (_, y) in zip(("pmc", "npo"), lines("side_effects"), strict=True):
        counts = summary["side_effects"][model]["watched"]["histogram"]
        np.testing.assert_allclose(np.array(y) * sum(counts), np.maximum(counts, 0.1))
    assert checked == plots.keys()


def test_shares_of_questions_end_at_all_of_them(evaluation):
    plots = {plot.name: plot for plot in evaluation_plots(read_evaluation(evaluation))}
    assert plots["least_likely_quantiles"].figure.axes[0].get_xlim() == (0, 1)


def test_axes_and_the_chance_line_are_named(evaluation):
    for plot in evaluation_plots(read_evaluation(evaluation)):
        axes = plot.figure.axes[0]
        assert axes.get_ylabel() and axes.get_xlabel(), plot.name
        names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
        assert ("chance, 25%" in names) == (plot.name == "least_likely_quantiles")
        # Each label at the end of a curve points to the end of a curve with that value.
        for note in (child for child in axes.get_children() if isinstance(child, Annotation)):
            ends = [line.get_ydata()[-1] for line in axes.lines]
            assert any(note.xy[1] == end and note.get_text() == percent(end) for end in ends)


def test_labels_at_the_ends_move_as_little_as_they_can():
    """Least squares with minimum gaps, against scipy's general solver."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 5):
        for values in np.sort(rng.random((5, count)) * 0.3):
            gaps = [{"type": "ineq", "fun": lambda y, i=i: y[i + 1] - y[i] - 0.1}
                    for i in range(count - 1)]  # fmt: skip
            best = minimize(lambda y, v=values: ((y - v) ** 2).sum(), values, constraints=gaps).x
            np.testing.assert_allclose(apart(values, 0.1), best, atol=1e-5)
    assert not len(apart(np.zeros(0), 0.1))


def test_models_differ_by_more_than_colour():
    models = [f"m{i}" for i in range(12)]
    looks = model_looks(EvaluationFiles({"models": models, "before": "m1"}, {}, ""))
    assert len({(str(look.dash), look.marker) for look in looks.values()}) == len(models)
    assert len({look.colour for look in looks.values()}) > 4
    assert looks["m1"].colour == "muted"  # the model before unlearning
    assert looks["m0"].colour == "after"


def test_figures_are_files_for_print_too(evaluation):
    report_files = sorted(path.name for path in (evaluation / "report").iterdir())
    stems = {name.rpartition(".")[0] for name in report_files} - {"index", "statement"}
    assert len(stems) == FIGURES
    for stem in stems:
        assert imread(evaluation / "report" / f"{stem}.png").std() > 0.01
        root = ElementTree.parse(evaluation / "report" / f"{stem}.svg").getroot()
        assert root.tag.endswith("svg")


def test_the_training_of_models_that_are_a_runs_is_drawn(evaluation, tmp_path):
    """One figure per curve, with the numbers of metrics.jsonl; none for models without a run."""
    rows = {
        "pmc": [
            {
                "step": k,
                "mean_selected_score": 1 - k / 4,
                "forget_loss": 3.0 - k,
                "retain_loss": 1.5,
            }
            for k in range(3)
        ],
        "npo": [{"step": k, "forget_loss": -k, "retain_loss": 2.0, "loss": 0.5} for k in range(2)],
    }
    curves = {}
    for name, lines in rows.items():
        (tmp_path / name / "model").mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        curves[name] = training_curves(tmp_path / name / "model")
    assert training_curves(tmp_path / "pmc") == training_curves(Path("org/model")) == {}
    files = read_evaluation(evaluation)
    assert not [plot.name for plot in curve_plots(files)]
    for name, found in curves.items():
        files.summary["curves"][name]["training"] = found
    plots = {plot.name: plot for plot in curve_plots(files)}
    drawn = {
        name: [(list(line.get_xdata()), list(line.get_ydata())) for line in p.figure.axes[0].lines]
        for name, p in plots.items()
    }
    assert drawn == {
        "training_mean_selected_score": [([0, 1, 2], [1, 0.75, 0.5])],
        "training_forget_loss": [([0, 1, 2], [3, 2, 1]), ([0, 1], [0, -1])],
        "training_retain_loss": [([0, 1, 2], [1.5] * 3), ([0, 1], [2, 2])],
    }
    score = plots["training_mean_selected_score"]
    assert "pmc: 1.00 at the first step, 0.50 at the last" in score.alt
