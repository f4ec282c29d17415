"""The ablation command: means and spread over seeds, the figure, and one-line errors."""

import csv
import json
import re
from pathlib import Path

import pytest
from test_comparison import outcome, write_run

from pmc_jax import report
from pmc_jax.errors import UserError
from pmc_jax.reporting.ablation import draw_panel, lines_over, positions_of, swept, values_of
from pmc_jax.reporting.comparison import compare
from pmc_jax.reporting.plots import plain_style

KEY = "method.temperature"


def sweep(runs: Path, values: list, **others) -> None:
    """Two seeds per value.

    The first value has unlearn quality 90 and 80, each further one ten less.
    """
    for place, value in enumerate(values):
        for seed in (0, 1):
            directory = runs / f"{'-'.join(map(str, others.values()))}{place}-{seed}"
            quality = 90.0 - 10 * (place + seed)
            write_run(directory, "pmc", 95.0, quality, seed, **{KEY: value}, **others)


def test_the_command_writes_a_picture_and_tables(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    sweep(runs, [1.0, 0.7, 1.5])
    assert report.main(["ablation", str(runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "6 runs, 3 configurations" in printed
    assert re.search(rf"^{KEY} +quality +utility +leakage +secrets$", printed, re.MULTILINE)
    assert re.search(r"^0\.7 +75\.0 +95\.0 +37\.5 +–$", printed, re.MULTILINE)
    rows = json.loads((out / "ablation.json").read_text())
    assert [row[KEY] for row in rows] == [0.7, 1.0, 1.5]
    assert [row["unlearn_quality_mean"] for row in rows] == [75, 85, 65]
    first = rows[1]
    assert (first["unlearn_quality_least"], first["unlearn_quality_greatest"]) == (80, 90)
    assert first["worst_case_leakage_mean"] == pytest.approx(42.5) and first["seeds"] == 2
    assert first["secret_leak_rate_sampled_mean"] is None
    with (out / "ablation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["unlearn_quality_mean"]) for row in table] == [75, 85, 65]
    assert {row["secret_leak_rate_sampled_mean"] for row in table} == {""}
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "ablation.svg").read_text()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert report.main(["ablation", str(runs), "--over", KEY, "--out", str(out)]) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_other_settings_and_methods_are_lines_of_their_own():
    points = compare(
        [
            outcome("pmc", 90, 80 + n, seed, **{"method.samples": n, "method.keep": keep})
            for n in (16, 2, 4)
            for keep in (False, True)
            for seed in (0, 1)
        ]
        + [outcome("altpo", 90, 70 + n, **{"method.samples": n}) for n in (4, 2)]
    )
    lines = lines_over(points, "method.samples")
    assert {line.label for line in lines} == {
        "method=pmc, method.keep=no", "method=pmc, method.keep=yes", "method=altpo",
    }  # fmt: skip
    for line in lines:
        assert [point.mean("quality") for point in line.points] == (
            [72, 74] if line.others["method"] == "altpo" else [82, 84, 96]
        )


def test_each_line_has_a_symbol_of_its_own_at_its_means():
    from matplotlib.figure import Figure

    points = compare(
        [
            outcome("pmc", 90, 80 - 10 * keep - seed, seed, **{"n": n, "keep": keep})
            for n in (2, 4) for keep in (False, True) for seed in (0, 2)
        ]
    )  # fmt: skip
    with plain_style():
        axes = Figure().subplots()
        draw_panel(axes, lines_over(points, "n"), "n", "unlearn_quality")
    drawn = [container.lines[0] for container in axes.containers]
    assert sorted(line.get_ydata().tolist() for line in drawn) == [[69, 69], [79, 79]]
    assert all(line.get_xdata().tolist() == [2, 4] for line in drawn)
    assert len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn})
    bars = [container.lines[2][0].get_segments()[0][:, 1].tolist() for container in axes.containers]
    assert sorted(bars) == [[68, 70], [78, 80]]
    assert axes.get_ylim()[0] < 68 and axes.get_ylim()[1] > 80
    assert axes.get_xlabel() == "n" and [t.get_text() for t in axes.get_xticklabels()] == ["2", "4"]


@pytest.mark.parametrize(
    ("values", "order", "places", "logarithmic"),
    [
        ([1.5, 0.7], [0.7, 1.5], [0.7, 1.5], False),
        ([16, 2], [2, 16], [2, 16], True),
        ([0.0, 9.0], [0.0, 9.0], [0, 9], False),
        ([0.5, None], [None, 0.5], [0, 1], False),
        ([True, False], [False, True], [0, 1], False),
    ],
)
def test_values_have_an_order_and_positions(values, order, places, logarithmic):
    found = values_of(compare([outcome("pmc", 1, 1, key=value) for value in values]), "key")
    assert found == order
    assert positions_of(found) == (dict(zip(map(repr, order), places, strict=True)), logarithmic)


def test_mistakes_are_one_line(tmp_path, capsys):
    sweep(tmp_path / "runs", [0.7, 1.0], **{"method.samples": 4})
    sweep(tmp_path / "runs", [0.7, 1.0], **{"method.samples": 8})
    assert report.main(["ablation", str(tmp_path / "runs"), "--over", "seed"]) == 2
    error = capsys.readouterr().err
    assert "seed does not vary in the runs; what does: method.samples, method.temp" in error
    assert report.main(["ablation", str(tmp_path / "runs")]) == 2
    assert "the runs differ in method.samples, method.temperature" in capsys.readouterr().err
    with pytest.raises(UserError, match="no setting of the runs varies; expected --over"):
        swept(compare([outcome("pmc", 1, 1)]))
