"""What `real_model.py` found: numbers as JSON and CSV, figures, and the page `results.md`.

Every number and every sentence that depends on one is computed from the runs; the text around them
is `real_model.md.j2`.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from pmc_jax.data.files import write_json, write_text
from pmc_jax.reporting.comparison import Outcome, Point, compare, read_outcome
from pmc_jax.reporting.pareto import as_csv, draw_panel, interval_text, looks, method_rows
from pmc_jax.reporting.plots import LIGHT, plain_style
from pmc_jax.reporting.side_by_side import EVALUATION_MEASURES

HERE = Path(__file__).parent
METHODS = ("pmc", "ga", "gd", "dpo", "npo", "simnpo", "idk", "retain_only")
OWN = "pmc"
"""The method that the others are compared with."""
ATTACKS = {"sampling": "sampled", "prefilling": "sampled after a forced beginning"}
CURVES = {"curve": "ROUGE-L recall", "facts_curve": "fact recall"}
"""What an attack's curves show of the most revealing of m answers; the last known one counts."""
BEYOND = ("method.keep_sampling", "method.final_temperature", "method.final_retain_weight")
"""Options of PMC that are not in the paper and off by default."""
PLACES = ("name", "runs_dir", "seed", "model.path", "data.path")
"""Settings that say where a run is, not what it does."""
COLUMNS = (
    "unlearn_quality", "utility", "rouge_retain", "rouge_world_facts", "rouge_real_authors",
    "facts_forget", "sampling_worst", "sampling_facts_worst", "prefilling_worst",
    "prefilling_facts_worst", "degenerate_rate", "refusal_rate", "assertion_rate",
)  # fmt: skip
"""Measures of the table of all configurations; the table of the best ones has every measure."""
MEASURE = {measure.key: measure for measure in EVALUATION_MEASURES}


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        directory: of the run; its last part is the run's name.
        summary: its `summary.json`.
        evaluations: `summary.json` of the evaluations of its model, by their names in the plan.
        spent: seconds that its command took, of all CPU cores ("cpu") and by the clock ("wall").
    """

    directory: Path
    summary: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    spent: Mapping[str, float] | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.directory.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings of the run by dotted key."""
        return self.summary["settings"]

    @property
    def unlearns(self) -> bool:
        """Whether the run is one of a method that unlearns, rather than fine-tuning."""
        return self.method != "finetune"

    @property
    def method(self) -> str:
        """The method's name; PMC with an option that is not in the paper is a method of its own."""
        name = str(self.settings["method.name"])
        beyond = any(self.settings.get(key) for key in BEYOND)
        return f"{name}, beyond the paper" if beyond else name

    def measures(self, kind: str = "paper") -> Mapping[str, float | None]:
        """The measures of one evaluation by name; empty if there is none."""
        found = self.evaluations.get(kind)
        return found["measures"][self.name] if found else {}

    def curve(self, attack: str, what: str) -> Sequence[float]:
        """One of `CURVES`: of m sampled answers, m = 1, 2, …, as far as measured."""
        known = [e["curves"][self.name].get(attack, {}) for e in self.evaluations.values()]
        return max((part.get(what) or () for part in known), key=len, default=())

    @property
    def least_likely(self) -> Mapping[str, Any] | None:
        """Curves of the least-likely attack, if it was measured."""
        found = self.evaluations.get("paper")
        return found["curves"][self.name].get("least_likely") if found else None

    @property
    def cpu_minutes(self) -> float | None:
        """Minutes of CPU time of the training command, all cores added."""
        return self.spent["cpu"] / 60 if self.spent else None

    def outcome(self, target: float | None) -> Outcome:
        """The run as `pmc report pareto` compares runs, with what `evaluate` measured."""
        found, measured = read_outcome(self.directory), self.measures()
        return dataclasses.replace(
            found,
            method=self.method,
            settings={k: v for k, v in found.settings.items() if k not in PLACES},
            quality=float(measured["unlearn_quality"] or 0.0),
            utility=float(measured["utility"] or 0.0),
            before=target,
            minutes=self.cpu_minutes if self.cpu_minutes is not None else found.minutes,
        )


def compared(runs: Sequence[Run]) -> list[Run]:
    """The runs of unlearning methods whose models are evaluated."""
    return [run for run in runs if run.unlearns and "paper" in run.evaluations]


def named(runs: Sequence[Run], name: str) -> Run | None:
    """The run with this name, if its model is evaluated."""
    return next((run for run in runs if run.name == name and "paper" in run.evaluations), None)


def utility_of_target(runs: Sequence[Run]) -> float | None:
    """The utility of the target model."""
    target = named(runs, "target")
    return target and target.measures().get("utility")


def balance(run: Run, target: float) -> float:
    """What `best_runs` makes as large as possible."""
    measured = run.measures()
    kept = 100 * (measured["utility"] or 0.0) / target
    return min(measured["unlearn_quality"] or 0.0, kept)


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """For each method, the run of seed 0 with the best balance of quality and utility.

    It has the largest minimum of unlearn quality and utility as a share of the target model's.
    """
    target, best = utility_of_target(runs), dict[str, Run]()
    for run in compared(runs) if target else ():
        method = run.method
        if run.settings["seed"] == 0 and (
            method not in best or balance(run, target) > balance(best[method], target)
        ):
            best[method] = run
    return list(best.values())


def write_results(
    runs: Sequence[Run], budget: str, rows: Mapping[str, int], out: Path, docs: Path
) -> None:
    """Write the numbers to `out`, and the page with its figures to `docs`.

    The files are `real_model.json` and `.csv`, `results.md` and `results/*.png`; for another budget
    than "cpu" their names end in it.
    """
    suffix = "" if budget == "cpu" else f"_{budget}"
    found = [number_row(run) for run in runs]
    result = {
        "budget": budget, "rows": dict(rows), "load_average": os.getloadavg()[0],
        "versions": runs[-1].summary["versions"] if runs else {}, "runs": found,
    }  # fmt: skip
    write_json(out / f"real_model{suffix}.json", result)
    write_text(out / f"real_model{suffix}.csv", as_csv(table_rows(found)))
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


def number_row(run: Run) -> dict[str, Any]:
    """One run in `real_model.json`: all measures and the curves of the attacks."""
    seconds = run.summary["seconds"]
    return {
        "run": run.name,
        "method": run.method,
        "seed": run.settings["seed"],
        "steps": run.summary["steps"],
        "tokens_sampled": run.summary["tokens_sampled"],
        "settings": {
            key: value
            for key, value in run.settings.items()
            if key.partition(".")[0] in ("method", "optimizer", "training")
        },
        "cpu_minutes": run.cpu_minutes and round(run.cpu_minutes, 2),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "evaluations": {
            kind: {
                "samples": found["settings"]["evaluation.attack_samples"],
                "measures": rounded(found["measures"][run.name]),
                "curves": {
                    attack: rounded({k: v for k, v in curves.items() if k.endswith("curve")})
                    for attack, curves in found["curves"][run.name].items()
                    if attack in ATTACKS
                },
            }
            for kind, found in run.evaluations.items()
        },
    }


def rounded(value: Any) -> Any:
    """Numbers to five digits after the point, in lists and mappings, too."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


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


def leaking(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """The models whose leakage is shown, with labels: fine-tuned ones, and the best runs."""
    found = [(name, run) for name in ("target", "reference") if (run := named(runs, name))]
    return found + [(run.method, run) for run in best_runs(runs)]


def known_curves(runs: Sequence[Run]) -> list[str]:
    """The keys of `CURVES` that are known of some model."""
    return [k for k in CURVES if any(run.curve("sampling", k) for _, run in leaking(runs))]


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


def leakage_table(runs: Sequence[Run]) -> list[list[str]]:
    """The ends of the curves of `draw_leakage`, with the number of answers."""
    table = []
    for name, run in leaking(runs):
        curves = [run.curve(attack, key) for key in known_curves(runs) for attack in ATTACKS]
        ends = [f"{100 * curve[-1]:.1f}" if curve else "–" for curve in curves]
        table.append([f"`{name}`", str(max(map(len, curves), default=0)), *ends])
    return table


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same numbers give the same bytes."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def samples_of(runs: Sequence[Run], kind: str = "paper") -> int:
    """How many answers to a question the attacks of an evaluation sampled."""
    known = (run.evaluations[kind] for run in runs if kind in run.evaluations)
    return next((int(found["settings"]["evaluation.attack_samples"]) for found in known), 0)


def label(key: str, samples: int) -> str:
    """The name of a measure with its better direction."""
    measure = MEASURE[key]
    return f"{measure.label.format(samples=samples)} {measure.arrow}".strip()


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def configuration(run: Run) -> str:
    """The settings in a run's name as text."""
    parts = re.findall(r"(\w+)=(.+?)(?=-\w+=|$)", run.name)
    return ", ".join(f"{'λ' if k == 'lambda' else k} {v}" for k, v in parts if k != "seed")


def configurations(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The compared runs by configuration: those that differ in the seed only."""
    found: dict[str, list[Run]] = {}
    for run in compared(runs):
        found.setdefault(re.sub(r"-seed=\d+$", "", run.name), []).append(run)
    return found


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


def order(run: Run) -> tuple[Any, ...]:
    """PMC first, then methods by name, and their configurations by their settings."""
    return not run.method.startswith(OWN), run.method, run.name


@dataclasses.dataclass(frozen=True)
class Rival:
    """A configuration of PMC and what the baselines reach with at least its unlearn quality."""

    own: Sequence[Run]
    quality: float
    utility: float
    baseline: Sequence[Run] | None
    baseline_quality: float | None
    baseline_utility: float | None


def rivals(runs: Sequence[Run]) -> list[Rival]:
    """For each configuration of PMC, the baseline of most utility among those that forget as much.

    The control that unlearns nothing by design, `retain_only`, counts like any other baseline.
    """
    groups = [
        (
            group,
            *(
                mean([run.measures()[key] for run in group]) or 0.0
                for key in ("unlearn_quality", "utility")
            ),
        )
        for group in configurations(runs).values()
    ]
    found = []
    for own, quality, utility in groups:
        if own[0].method != OWN:
            continue
        others = [
            other
            for other in groups
            if not other[0][0].method.startswith(OWN) and other[1] >= quality
        ]
        best = max(others, key=lambda other: other[2], default=(None, None, None))
        found.append(Rival(own, quality, utility, *best))
    return sorted(found, key=lambda rival: -rival.quality)


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


def claims(runs: Sequence[Run]) -> list[Claim]:
    """The paper's claims beside what these runs show."""
    target, reference = named(runs, "target"), named(runs, "reference")
    best = {run.method: run for run in best_runs(runs)}
    own, others = best.get(OWN), [run for method, run in best.items() if not method.startswith(OWN)]
    if target is None or own is None:
        return []
    utility = target.measures()["utility"]
    pairs = rivals(runs)
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
                f"true for {len(beaten)} of {len(pairs)} configurations of PMC (table above)",
                len(beaten) == len(pairs),
            )
        )
        for attack, title in ATTACKS.items():
            facts = own.measures().get(f"{attack}_facts_worst") is not None
            key = f"{attack}_facts_worst" if facts else f"{attack}_worst"
            values = {run.method: run.measures()[key] for run in [own, *others]}
            least = min((v, m) for m, v in values.items() if m != OWN)
            words = "fact words" if facts else "words"
            found.append(
                Claim(
                    f"PMC leaks least when answers are {title}",
                    f"{100 * values[OWN]:.1f}% of the {words} in the most revealing answer, "
                    f"the best baseline ({least[1]}) {100 * least[0]:.1f}%",
                    values[OWN] < least[0],
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
            "Fewer than three seeds of the best configuration, so without an interval: "
            f"{', '.join(f'`{method}`' for method in single)}."
        )
    short = [run.method for run in best if "leakage" not in run.evaluations]
    if short:
        found.append(
            "Attacks with 100 answers to a question on the best configuration: "
            f"{', '.join(f'`{method}`' for method in short)} (16 answers only)."
        )
    if named(runs, "reference") is None:
        found.append("The reference, which is trained on the retain rows alone.")
    for kind, what in {
        "tofu": "TOFU's forget quality against the reference",
        "robustness": "relearning from 8 forget and 8 benign rows, and weights of 8 and 4 bits",
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
        table=measure_table(runs, columns), rivals=rivals(runs), configuration=configuration,
        methods=[{**row, "interval": interval_text(row)} for row in method_rows(points)],
        models=[name for name, _ in leaking(runs)], leakage=leakage_table(runs),
        leaks=[f"{CURVES[k]}, {title}" for k in known_curves(runs) for title in ATTACKS.values()],
        everything=measures_of_best(runs), claims=claims(runs),
        missing=missing(runs),
    )  # fmt: skip
