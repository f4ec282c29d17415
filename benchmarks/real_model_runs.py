"""The runs of `real_model.py`: what was measured of each, and what is computed from several."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pmc_jax.reporting.comparison import Outcome

METHODS = ("pmc", "ga", "gd", "dpo", "npo", "simnpo", "idk", "retain_only")
OWN = "pmc"
"""The method that the others are compared with."""
OWN_BEYOND = f"{OWN}, beyond the paper"
"""The same with options that are not in the paper, `BEYOND`."""
ATTACKS = {"sampling": "sampled", "prefilling": "sampled after a forced beginning"}
CURVES = {"curve": "ROUGE-L recall", "facts_curve": "fact recall"}
"""What an attack's curves show of the most revealing of m answers; the last known one counts."""
BEYOND = (
    "method.keep_sampling", "method.final_temperature", "method.final_retain_weight",
    "method.beginnings", "method.offer_refusals", "method.retain_loss", "training.rehearsal",
)  # fmt: skip
"""Options of PMC that are not in the paper."""
OFF = (None, False, 0, "nll")
"""Values with which such an option is off."""
SECTIONS = ("method", "adapter", "optimizer", "training")
"""Settings of a run that `real_model.json` has."""
SHOWN = {"forget": 8, "retain": 4, "world_facts": 4, "real_authors": 4}
"""How many greedy answers of each set the page shows."""
KEPT = (*CURVES, "accuracy_by_quantile", "minima", "chance")
"""What `real_model.json` has of the curves of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        record: what `real_model.json` has of it (`record_of`).
    """

    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.record["run"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the run's method, optimizer, adapter and training by dotted key."""
        return self.record["settings"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.record["seed"])

    @property
    def unlearns(self) -> bool:
        """Whether the run is one of a method that unlearns, rather than fine-tuning."""
        return self.method != "finetune"

    @property
    def method(self) -> str:
        """The method; with an adapter or an option that is not in the paper, one of its own."""
        return method_of(self.settings)

    @property
    def evaluations(self) -> Mapping[str, Mapping[str, Any]]:
        """The evaluations of the run's model by their names in the plan."""
        return self.record["evaluations"]

    def measures(self, kind: str = "paper") -> Mapping[str, float | None]:
        """The measures of one evaluation by name; empty if there is none."""
        found = self.evaluations.get(kind)
        return found["measures"] if found else {}

    def curve(self, attack: str, what: str) -> Sequence[float]:
        """One of `CURVES`: of m sampled answers, m = 1, 2, …, as far as measured."""
        known = [e["curves"].get(attack, {}) for e in self.evaluations.values()]
        return max((part.get(what) or () for part in known), key=len, default=())

    @property
    def least_likely(self) -> Mapping[str, Any] | None:
        """Curves of the least-likely attack, if it was measured."""
        found = self.evaluations.get("paper")
        return found["curves"].get("least_likely") if found else None

    @property
    def answers(self) -> Mapping[str, str]:
        """The greedy answers that the page shows, by question."""
        return self.evaluations.get("paper", {}).get("answers", {})

    @property
    def cpu_minutes(self) -> float | None:
        """Minutes of CPU time of the training command, all cores added."""
        return self.record["cpu_minutes"]

    def outcome(self, target: float | None) -> Outcome:
        """The run as `pmc report pareto` compares runs, with what `evaluate` measured.

        Its settings are those in its name, so that records of several versions can be compared.
        """
        measured = self.measures()
        return Outcome(
            path=self.name,
            method=self.method,
            seed=self.seed,
            settings={"method": self.method, **named_settings(self.name)},
            quality=float(measured["unlearn_quality"] or 0.0),
            utility=float(measured["utility"] or 0.0),
            before=target,
            minutes=self.cpu_minutes or self.record["seconds"]["total"] / 60,
            steps=self.record["steps"],
            target=self.record.get("target"),
        )


def method_of(settings: Mapping[str, Any]) -> str:
    """`Run.method` from settings by dotted key."""
    name = str(settings["method.name"])
    rank = settings.get("adapter.rank")
    beyond = name == OWN and any(settings.get(key) not in OFF for key in BEYOND)
    adapted = f"{name}, LoRA of rank {rank}" if rank else name
    return f"{adapted}, beyond the paper" if beyond else adapted


def record_of(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    spent: Mapping[str, float] | None,
    target: str | None,
) -> dict[str, Any]:
    """A run as `real_model.json` has it: all measures, and the curves of the attacks.

    Args:
        summary: the run's `summary.json`.
        evaluations: `summary.json` of the evaluations of its model, by their names in the plan.
        answers: greedy answers of its model by set, in the order of the rows.
        spent: seconds that its command took, of all CPU cores ("cpu") and by the clock ("wall").
        target: hash of the weights that it began with.
    """
    settings = summary["settings"]
    name = settings["name"]
    shown = [
        row
        for key, count in SHOWN.items()
        for row in [a for a in answers if a["set"] == key][:count]
    ]
    return {
        "run": name,
        "method": method_of(settings),
        "seed": settings["seed"],
        "steps": summary["steps"],
        "tokens_sampled": summary["tokens_sampled"],
        "target": target,
        "versions": summary["versions"],
        "settings": {k: v for k, v in settings.items() if k.partition(".")[0] in SECTIONS},
        "cpu_minutes": round(spent["cpu"] / 60, 2) if spent else None,
        "seconds": {key: round(value, 1) for key, value in summary["seconds"].items()},
        "evaluations": {
            kind: {
                "samples": found["settings"]["evaluation.attack_samples"],
                "measures": rounded(found["measures"][name]),
                **({"answers": {row["question"]: row["text"] for row in shown}}
                   if kind == "paper" else {}),
                "curves": {
                    attack: rounded({k: v for k, v in curves.items() if k in KEPT})
                    for attack, curves in found["curves"][name].items()
                    if attack in (*ATTACKS, "least_likely")
                },
            }
            for kind, found in evaluations.items()
        },
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers to five digits after the point, in lists and mappings, too."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


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
        if run.seed == 0 and (
            method not in best or balance(run, target) > balance(best[method], target)
        ):
            best[method] = run
    return list(best.values())


def leaking(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """The models whose leakage is shown, with labels: fine-tuned ones, and the best runs."""
    found = [(name, run) for name in ("target", "reference") if (run := named(runs, name))]
    return found + [(run.method, run) for run in best_runs(runs)]


def known_curves(runs: Sequence[Run]) -> list[str]:
    """The keys of `CURVES` that are known of some model."""
    return [k for k in CURVES if any(run.curve("sampling", k) for _, run in leaking(runs))]


def named_settings(name: str) -> dict[str, str]:
    """The settings in a run's name."""
    return dict(re.findall(r"(\w+)=(.+?)(?=-\w+=|$)", name))


def configuration(run: Run) -> str:
    """The settings in a run's name as text."""
    parts = named_settings(run.name).items()
    return ", ".join(f"{'λ' if k == 'lambda' else k} {v}" for k, v in parts if k != "seed")


def configurations(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The compared runs by configuration: those that differ in the seed only."""
    found: dict[str, list[Run]] = {}
    for run in compared(runs):
        found.setdefault(re.sub(r"-seed=\d+$", "", run.name), []).append(run)
    return found


def order(run: Run) -> tuple[Any, ...]:
    """PMC first, then methods by name, and their configurations by their settings."""
    return not run.method.startswith(OWN), run.method, run.name


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclasses.dataclass(frozen=True)
class Rival:
    """A configuration of PMC and what the baselines reach with at least its unlearn quality."""

    own: Sequence[Run]
    quality: float
    utility: float
    baseline: Sequence[Run] | None
    baseline_quality: float | None
    baseline_utility: float | None


def rivals(runs: Sequence[Run], method: str = OWN) -> list[Rival]:
    """For each configuration of PMC, the baseline of most utility among those that forget as much.

    `method` is `OWN` or `OWN_BEYOND`.

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
        if own[0].method != method:
            continue
        others = [
            other
            for other in groups
            if not other[0][0].method.startswith(OWN) and other[1] >= quality
        ]
        best = max(others, key=lambda other: other[2], default=(None, None, None))
        found.append(Rival(own, quality, utility, *best))
    return sorted(found, key=lambda rival: -rival.quality)
