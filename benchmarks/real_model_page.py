"""What `real_model.py` found: numbers as JSON and CSV, and the page `results.md`.

Every number and every sentence that depends on one is computed from the runs; the text around them
is `real_model.md.j2`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from real_model_figures import draw_fronts, draw_leakage, draw_suppression, draw_time
from real_model_runs import (
    ATTACKS,
    CURVES,
    METHODS,
    OWN,
    OWN_BEYOND,
    SHOWN,
    Run,
    best_runs,
    compared,
    configuration,
    configurations,
    known_curves,
    leaking,
    mean,
    named,
    order,
    rivals,
    utility_of_target,
)

from pmc_jax.data.files import write_json, write_text
from pmc_jax.reporting.comparison import Point, compare
from pmc_jax.reporting.pareto import as_csv, interval_text, method_rows
from pmc_jax.reporting.side_by_side import EVALUATION_MEASURES

HERE = Path(__file__).parent
COLUMNS = (
    "unlearn_quality", "utility", "rouge_retain", "rouge_world_facts", "rouge_real_authors",
    "facts_forget", "sampling_worst", "sampling_facts_worst", "prefilling_worst",
    "prefilling_facts_worst", "degenerate_rate", "refusal_rate", "assertion_rate",
)  # fmt: skip
"""Measures of the table of all configurations; the table of the best ones has every measure."""
MEASURE = {measure.key: measure for measure in EVALUATION_MEASURES}


def write_results(
    runs: Sequence[Run], budget: str, rows: Mapping[str, int], results: Path, docs: Path
) -> None:
    """Write the numbers to `results` and a CSV beside it, and the page with its figures to `docs`.

    The page is `results.md`, its figures are `results/*.png`; for another budget than "cpu" their
    names end in it.
    """
    suffix = "" if budget == "cpu" else f"_{budget}"
    found = [run.record for run in runs]
    result = {
        "budget": budget, "rows": dict(rows), "runs": found,
    }  # fmt: skip
    write_json(results, result)
    write_text(results.with_suffix(".csv"), as_csv(table_rows(found)))
    points = compare([run.outcome(utility_of_target(runs)) for run in compared(runs)])
    figures = docs / f"results{suffix}"
    figures.mkdir(exist_ok=True)
    if points:
        draw_fronts(points, runs, figures / "pareto.png")
        draw_time(points, utility_of_target(runs), figures / "time.png")
    if compared(runs):
        draw_leakage(runs, figures / "leakage.png")
        draw_suppression(runs, figures / "suppression.png")
    write_text(docs / f"results{suffix}.md", page(runs, points, budget, rows, figures.name))


def table_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the CSV: measures of "paper", those of the other evaluations with a prefix."""
    rows = []
    for run in found:
        row = {key: run[key] for key in ("run", "method", "seed", "steps", "cpu_minutes")}
        for kind, evaluation in run["evaluations"].items():
            prefix = "" if kind == "paper" else f"{kind}: "
            row |= {f"{prefix}{key}": value for key, value in evaluation["measures"].items()}
        rows.append(row)
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def leakage_table(runs: Sequence[Run]) -> list[list[str]]:
    """The ends of the curves of `draw_leakage`, with the number of answers."""
    table = []
    for name, run in leaking(runs):
        curves = [run.curve(attack, key) for key in known_curves(runs) for attack in ATTACKS]
        ends = [f"{100 * curve[-1]:.1f}" if curve else "–" for curve in curves]
        table.append([f"`{name}`", str(max(map(len, curves), default=0)), *ends])
    return table


def samples_of(runs: Sequence[Run], kind: str = "paper") -> int:
    """How many answers to a question the attacks of an evaluation sampled."""
    known = (run.evaluations[kind] for run in runs if kind in run.evaluations)
    return next((int(found["samples"]) for found in known), 0)


def label(key: str, samples: int) -> str:
    """The name of a measure with its better direction."""
    measure = MEASURE[key]
    return f"{measure.label.format(samples=samples)} {measure.arrow}".strip()


def measure_table(runs: Sequence[Run], columns: Sequence[str]) -> list[list[str]]:
    """One row for the target, the reference, and each configuration as the mean over seeds."""
    table = []
    best = {run.name for run in best_runs(runs)}
    for name in ("target", "reference"):
        if run := named(runs, name):
            cells = [MEASURE[key].format(run.measures().get(key)) for key in columns]
            table.append([name, "", "", *cells, "–"])
    for group in sorted(configurations(runs).values(), key=lambda g: order(g[0])):
        first = group[0]
        cells = [MEASURE[k].format(mean([run.measures().get(k) for run in group])) for k in columns]
        minutes = mean([run.cpu_minutes for run in group])
        mark = "**" if any(run.name in best for run in group) else ""
        table.append(
            [
                f"{mark}`{first.method}`{mark}",
                configuration(first),
                str(len(group)),
                *cells,
                "–" if minutes is None else f"{minutes:.0f}",
            ]
        )
    return table


def measures_of_best(runs: Sequence[Run]) -> list[list[str]]:
    """Every measure that the evaluations of the target, the reference and the best runs have.

    The rows are measures and the columns models. A measure of several evaluations is that of the
    first: "paper", then the others by name.
    """
    models = [run for _, run in leaking(runs)]
    table = []
    for measure in EVALUATION_MEASURES:
        for kind in sorted({k for run in models for k in run.evaluations}, key=kind_order):
            values = [run.measures(kind).get(measure.key) for run in models]
            if any(value is not None for value in values):
                cells = [measure.format(value) for value in values]
                table.append([label(measure.key, samples_of(models, kind)), *cells])
                break
    return table


def kind_order(kind: str) -> tuple[bool, str]:
    """Sort key of evaluations: "paper" first."""
    return kind != "paper", kind


def shown_answers(runs: Sequence[Run]) -> dict[str, list[tuple[str, str]]]:
    """By question, the names of the target and the best runs with their answers."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, run in leaking(runs):
        for question, text in run.answers.items():
            cell = " ".join(text.split()).replace("|", "\\|")
            found.setdefault(question, []).append((name, cell))
    return found


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, what was found, and whether it holds; None: not measured."""

    text: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """The claim's state as a word."""
        return {True: "holds", False: "does not hold", None: "not measured"}[self.holds]


def claims(runs: Sequence[Run], method: str = OWN) -> list[Claim]:
    """The paper's claims beside what these runs show of PMC: of `OWN`, or of `OWN_BEYOND`."""
    target, reference = named(runs, "target"), named(runs, "reference")
    best = {run.method: run for run in best_runs(runs)}
    own, others = best.get(method), [run for name, run in best.items() if not name.startswith(OWN)]
    if target is None or own is None:
        return []
    utility = target.measures()["utility"]
    pairs = rivals(runs, method)
    most = max(pairs, key=lambda rival: rival.quality)
    found = [
        Claim(
            "PMC reaches an unlearn quality of at least 95",
            f"at most {most.quality:.1f} ({configuration(most.own[0])}); before "
            f"unlearning {target.measures()['unlearn_quality']:.1f}"
            + (f", never trained on the forget set {reference.measures()['unlearn_quality']:.1f}"
               if reference else ""),
            most.quality >= 95,
        ),
        Claim(
            "PMC keeps the utility of the target model (at least 98% of it)",
            f"{100 * own.measures()['utility'] / utility:.0f}% at the best balance, "
            f"{100 * most.utility / utility:.0f}% at the highest unlearn quality",
            own.measures()["utility"] >= 0.98 * utility,
        ),
    ]  # fmt: skip
    if others:
        beaten = [r for r in pairs if r.baseline_utility is None or r.utility > r.baseline_utility]
        found.append(
            Claim(
                "No baseline has more utility at the same unlearn quality",
                f"holds for {len(beaten)} of {len(pairs)} configurations of PMC (table above)",
                len(beaten) == len(pairs),
            )
        )
        for attack, title in ATTACKS.items():
            facts = own.measures().get(f"{attack}_facts_worst") is not None
            key = f"{attack}_facts_worst" if facts else f"{attack}_worst"
            least = min(others, key=lambda run: run.measures()[key])
            leaked, kept = least.measures()[key], least.measures()["utility"] / utility
            words = "fact words" if facts else "words"
            found.append(
                Claim(
                    f"PMC leaks least when answers are {title}",
                    f"{100 * own.measures()[key]:.1f}% of the {words} in the most revealing "
                    f"answer, the best baseline (`{least.method}`, which keeps {100 * kept:.0f}% "
                    f"of the utility) {100 * leaked:.1f}%",
                    own.measures()[key] < leaked,
                )
            )
    return found


def missing(runs: Sequence[Run]) -> list[str]:
    """What these runs do not show yet."""
    found = []
    groups = configurations(runs)
    by_method: dict[str, int] = {}
    for group in groups.values():
        method = group[0].method
        by_method[method] = by_method.get(method, 0) + 1
    if few := [f"`{m}` ({n})" for m, n in sorted(by_method.items()) if n < 6 and m in METHODS]:
        found.append(f"Fewer than six configurations: {', '.join(few)}.")
    if absent := [f"`{method}`" for method in METHODS if method not in by_method]:
        found.append(f"Not run yet: {', '.join(absent)}.")
    best = best_runs(runs)
    seeds = {run.name: len(groups[re.sub(r"-seed=\d+$", "", run.name)]) for run in best}
    if single := [run.method for run in best if seeds[run.name] < 3]:
        found.append(
            "Fewer than three seeds of the best configuration, so there is no interval: "
            f"{', '.join(f'`{method}`' for method in single)}."
        )
    short = [run.method for run in best if "leakage" not in run.evaluations]
    if short:
        found.append(
            "No attack with 100 answers to a question on the best configuration, only with 16: "
            f"{', '.join(f'`{method}`' for method in short)}."
        )
    drawn = any(run.least_likely for run in best)
    if drawn and (bare := [run.method for run in best if not run.least_likely]):
        found.append(
            "Not in the figure of traces of suppression, because the curves were not stored: "
            f"{', '.join(f'`{method}`' for method in bare)}."
        )
    if named(runs, "reference") is None:
        found.append("The reference, which is trained on the retain rows alone, has not been run.")
    for kind, what in {
        "tofu": "TOFU's forget quality against the reference",
        "robustness": "relearning from 8 forget and 8 retain rows, and weights of 8 and 4 bits",
    }.items():
        if not any(kind in run.evaluations for run in best):
            found.append(f"Not measured: {what}.")
    return found


def page(
    runs: Sequence[Run],
    points: Sequence[Point],
    budget: str,
    rows: Mapping[str, int],
    figures: str,
) -> str:
    """The text of the page."""
    columns = [key for key in COLUMNS if any(run.measures().get(key) is not None for run in runs)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("real_model.md.j2").render(
        budget=budget, rows=rows, figures=figures,
        target=named(runs, "target"), own=OWN,
        seeds=max((len(group) for group in configurations(runs).values()), default=0),
        count=len(configurations(runs)), columns=[label(key, samples_of(runs)) for key in columns],
        table=measure_table(runs, columns), configuration=configuration,
        rivals=rivals(runs) + rivals(runs, OWN_BEYOND),
        methods=[{**row, "interval": interval_text(row)} for row in method_rows(points)],
        models=[name for name, _ in leaking(runs)], leakage=leakage_table(runs),
        leaks=[f"{CURVES[k]}, {title}" for k in known_curves(runs) for title in ATTACKS.values()],
        everything=measures_of_best(runs), claims=claims(runs),
        answers=shown_answers(runs), forget_answers=SHOWN["forget"],
        claims_beyond=claims(runs, OWN_BEYOND), missing=missing(runs),
    )  # fmt: skip
