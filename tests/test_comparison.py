"""Dominance, fronts and hypervolumes against brute force; the command on constructed summaries."""

import csv
import json

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given, settings
from hypothesis import strategies as st

from pmc_jax import report
from pmc_jax.reporting.comparison import (
    Outcome,
    check_comparable,
    compare,
    dominates,
    enough,
    front,
    hypervolume,
    hypervolume_interval,
    read_outcome,
    reservations,
)
from pmc_jax.reporting.tables import text_table

PERCENT = st.integers(0, 100)
PAIRS = st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=8)


def outcome(method: str, utility: float, quality: float, seed: int = 0, **changes) -> Outcome:
    found = {"method.name": method, "optimizer.learning_rate": 1e-3, **changes}
    return Outcome(f"{method}-{seed}", method, seed, found, quality, utility, 90.0, 1.0, 10)


@settings(deadline=None)
@given(PAIRS)
def test_hypervolume_counts_the_unit_squares_below_a_front(pairs):
    x, y = np.meshgrid(np.arange(100), np.arange(100))
    below = np.zeros((100, 100), bool)
    for utility, quality in pairs:
        below |= (x < utility) & (y < quality)
    assert hypervolume(pairs) == pytest.approx(below.sum() / 100**2)


@settings(deadline=None)
@given(PAIRS)
def test_a_front_is_the_undominated_points_and_has_the_whole_hypervolume(pairs):
    points = compare([outcome("ga", u, q, setting=i) for i, (u, q) in enumerate(pairs)])
    expected = {
        p for p in pairs if not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in pairs)
    }
    found = [point.objectives for point in front(points, "ga")]
    assert set(found) == expected and found == sorted(found)
    assert hypervolume(found) == pytest.approx(hypervolume(pairs))


def test_dominance_is_a_strict_order():
    assert dominates((2, 1), (1, 1)) and not dominates((1, 1), (1, 1))
    assert not dominates((2, 0), (1, 1)) and not dominates((1, 1), (2, 0))


def test_seeds_are_means_and_methods_are_compared():
    outcomes = [
        outcome("pmc", 90, 80, seed=0), outcome("pmc", 80, 100, seed=1),
        outcome("ga", 70, 60, seed=0), outcome("ga", 70, 60, seed=1),
    ]  # fmt: skip
    pmc, ga = compare(outcomes)
    assert pmc.objectives == (85, 90) and pmc.half_range("quality") == (10, 10)
    assert pmc.undominated and ga.on_front and not ga.undominated
    low, high = hypervolume_interval([pmc])
    # The four pairings of two seeds have means (90, 80), (80, 100), and twice (85, 90).
    assert (low, high) == pytest.approx((0.72, 0.80))
    assert hypervolume_interval([ga]) == pytest.approx((0.42, 0.42))
    assert hypervolume_interval(compare(outcomes[:1])) is None


def write_run(
    directory, method, utility, quality, seed, *, rows="r", prompt="Q: {question}", target="t",
    **changes,
):  # fmt: skip
    directory.mkdir(parents=True)
    if rows:
        inputs = {"layout": 3, "evaluation rows": rows, "model weights": target}
        (directory / "inputs.json").write_text(json.dumps(inputs))
    (directory / "config.yaml").write_text(f"method:\n  name: {method}\n")
    summary = {
        "before": {"utility": 95.0},
        "after": {
            "utility": utility,
            "unlearn_quality": quality,
            "worst_case_leakage": quality / 200,
        },
        "seconds": {"load": 500.0, "train": 60.0, "sample": 30.0, "total": 590.0},
        "steps": 40,
        "settings": {"method.name": method, "seed": seed, **changes},
        "prompt": {"prompt_text": prompt} if prompt else {},
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def test_the_command_writes_tables_pictures_and_a_page(tmp_path, capsys):
    runs = tmp_path / "runs"
    for seed in (0, 1):
        write_run(runs / f"a{seed}", "pmc", 90.0 + seed, 95.0, seed, **{"method.note": "<b>&"})
        write_run(runs / f"b{seed}", "pmc", 80.0 + seed, 97.0, seed, **{"method.note": "x"})
        write_run(runs / f"c{seed}", "npo", 60.0, 70.0 + seed, seed)
        write_run(runs / f"d{seed}", "pmc", 70.0, 90.0, seed, **{"method.note": "y"})
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "config.yaml").write_text("method:\n  name: ga\n")
    out = tmp_path / "out"
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "8 runs" in printed and "1 unfinished" in printed and "npo" in printed
    rows = json.loads((out / "runs.json").read_text())
    with (out / "runs.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == len(table) == 8
    assert rows[0]["method"] == "npo" and float(table[0]["minutes"]) == rows[0]["minutes"] == 1.5
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "pareto.svg").read_text()
    assert all(row["worst_case_leakage"] == row["unlearn_quality"] / 200 for row in rows)
    assert {row["degenerate_rate"] for row in table} == {""}
    page = (out / "index.html").read_text()
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page and "utility of the target model" in page
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_few_runs_are_said_to_be_few_instead_of_drawn(tmp_path, capsys):
    for name, method in (("a", "pmc"), ("b", "npo")):
        write_run(tmp_path / "runs" / name, method, 90.0, 50.0, 0)
    path = tmp_path / "runs/b/summary.json"
    note = "the settings are those of PMC; method=npo has none of its own"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"untuned": note}))
    out = tmp_path / "out"
    out.mkdir()
    (out / "pareto.png").write_text("of an earlier comparison")
    assert report.main(["pareto", str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = Page((out / "index.html").read_text())
    assert not list(out.glob("pareto.*")) and "too few configurations" in page.text
    few, chance = "Fewer than 3 configurations: npo (1), pmc (1)", "with one seed: npo, pmc."
    for text in (printed, page.text):
        assert few in text and chance in text and f"npo: {note}." in text
        assert "npo *" in text and "pmc *" not in text
    rows = {row["method"]: row["untuned"] for row in json.loads((out / "runs.json").read_text())}
    assert rows == {"npo": note, "pmc": None}


def test_enough_runs_of_all_methods_have_no_reservations():
    def points(number: int, seeds: int) -> list:
        return compare(
            [outcome(m, 50 + i, 50, seed=s, setting=i)
             for m in ("pmc", "npo") for i in range(number) for s in range(seeds)]
        )  # fmt: skip

    assert reservations(points(3, 2)) == [] and enough(points(3, 1)) and not enough(points(2, 2))
    assert reservations([]) == [] and not enough([])
    unequal = [p for p in points(4, 2) if p.method == "pmc" or p.differing["setting"] < 3]
    assert "npo 3, pmc 4" in reservations(unequal)[0]


OTHERS = [
    ({"prompt": "Frage: {question}"}, "prompt.question", "asked with different prompts"),
    ({"target": "u"}, "model.path", "began with different target models"),
    (
        {"evaluation.attack_samples": 8}, "evaluation.attack_samples",
        "measured with different settings (evaluation.attack_samples: null, 8)",
    ),
    ({"prompt": None}, "", "1 of 2 runs have not recorded"),
    ({"rows": None}, "", "1 of 2 runs have not recorded"),
    ({"evaluation.decode_batch": 8}, "", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "over", "expected"), OTHERS)
def test_what_speaks_against_a_comparison_is_said(tmp_path, capsys, changes, over, expected):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs / "a", "pmc", 90.0, 50.0, 0, setting=1)
    write_run(runs / "b", "pmc", 80.0, 60.0, 0, setting=2, **changes)
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 0
    page = " ".join(Page((out / "index.html").read_text()).text.split())
    printed = " ".join(capsys.readouterr().out.split())
    for text in (printed, page):
        assert expected in text if expected else "rompt" not in text and "measured" not in text
    assert report.main(["ablation", str(runs), "--over", "setting", "--out", str(out)]) == 0
    assert (expected or "2 runs") in " ".join(capsys.readouterr().out.split())
    outcomes = [read_outcome(runs / name) for name in "ab"]
    assert bool(check_comparable(outcomes)) == bool(expected)
    if over:  # what is swept is meant to differ
        assert check_comparable(outcomes, over) == []


def test_runs_on_other_rows_are_refused_unless_the_data_are_swept(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for rows in ("r", "s"):
        write_run(runs / rows, "pmc", 90.0, 50.0, 0, rows=rows, **{"data.forget": rows})
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "evaluated on different rows" in error and error.count("\n") == 1
    assert not out.exists()
    assert report.main(["ablation", str(runs), "--out", str(out)]) == 0


def test_rows_of_another_version_cannot_be_compared_and_that_is_said(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed, (name, rows, layout) in enumerate((("a", "r", 2), ("b", "s", 3), ("c", "s", 3))):
        write_run(runs / name, "pmc", 90.0, 50.0, seed, rows=rows)
        inputs = runs / name / "inputs.json"
        inputs.write_text(json.dumps({**json.loads(inputs.read_text()), "layout": layout}))
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not known whether they were evaluated on the same rows" in printed
    inputs.write_text(inputs.read_text().replace('"s"', '"t"'))
    assert report.main(["pareto", str(runs), "--out", str(out)]) == 2
    assert f"{runs / 'b'} and {runs / 'c'} were evaluated on different" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    assert report.main(["pareto", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
    write_run(tmp_path / "a", "pmc", 1.0, 1.0, 0)
    write_run(tmp_path / "b", "pmc", 1.0, 1.0, 0)
    assert report.main(["pareto", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "same configuration and seed" in error and error.count("\n") == 1


def test_headers_of_a_table_are_broken_between_words_only():
    """The first cells give way, however long they are."""
    header = ("method", "best quality", "its utility", "hypervolume", "interval", "configurations")
    for name in ("npo", "a_method_with_a_very_long_name" * 2):
        table = text_table(header, [[(name, "100.0", "99.0", "0.639", "0.600 to 0.700", "12")]])
        words = table.split()
        assert {word for title in header for word in title.split()} <= {*words}
        assert all(len(line) <= 80 for line in table.splitlines())
