"""Comparison of runs: configurations as means over seeds, dominance, fronts, hypervolumes."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pmc_jax.data.encode import EVALUATION_ROWS
from pmc_jax.data.files import read_object, read_text, to_json
from pmc_jax.errors import UserError
from pmc_jax.reporting.redaction import masked_summary
from pmc_jax.reporting.run_files import number
from pmc_jax.runs.directory import CONFIG, INPUTS, SUMMARY
from pmc_jax.text.counts import counted

NOT_CONFIGURATION = ("seed", "name", "runs_dir", "overwrite")
"""Settings in which the runs of one configuration may differ."""
NOT_WORK = ("load", "evaluate_before", "checkpoint", "export", "evaluate_after", "total")
"""Parts of a run's time that do not depend on the method."""
FURTHER = ("worst_case_leakage", "secret_leak_rate_sampled", "degenerate_rate")
"""Further measures of the table, which show more than greedy answers."""
MEASURED_WITH = ("evaluation.", "model.dtype", "training.max_length")
"""Beginnings of the settings on which measures depend, whatever the model."""
SPEED_ONLY = "evaluation.decode_batch"
RESAMPLES = 1000
ENOUGH = 3
"""Configurations of a method from which on its marks are a front rather than single settings."""


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        path: its directory.
        method: the method's name.
        seed: its seed.
        settings: all settings by dotted key.
        quality: unlearn quality in percent.
        utility: utility in percent.
        before: utility of the target model in percent, if known.
        minutes: time of the method's own work, without loading and evaluation.
        steps: number of optimizer steps.
        further: the measures in `FURTHER` that the run has.
        untuned: that its settings were chosen for another method, in words; None if not.
        rows: hash of the rows that it was evaluated on; None if it has recorded none.
        layout: the version of its files, which decides how rows are hashed; None likewise.
        prompt: the text of the prompt that it was asked with; None likewise.
        target: hash of the weights of the target model; None likewise.
    """

    path: str
    method: str
    seed: int
    settings: dict[str, Any]
    quality: float
    utility: float
    before: float | None
    minutes: float
    steps: int
    further: dict[str, float] = field(default_factory=dict)
    untuned: str | None = None
    rows: str | None = None
    layout: int | None = None
    prompt: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Point:
    """A configuration, which is compared by its means over seeds.

    Attributes:
        method: the method's name.
        outcomes: its runs.
        differing: the settings in which the configurations of its method differ.
        on_front: whether no configuration of the same method dominates it.
        undominated: whether no configuration of any method dominates it.
    """

    method: str
    outcomes: tuple[Outcome, ...]
    differing: dict[str, Any]
    on_front: bool = False
    undominated: bool = False

    def values(self, name: str) -> Float[np.ndarray, " seeds"]:
        """The attribute `name` of every seed's run."""
        return np.array([getattr(outcome, name) for outcome in self.outcomes], dtype=float)

    def mean(self, name: str) -> float:
        """The mean of `name` over seeds."""
        return float(self.values(name).mean())

    def half_range(self, name: str) -> tuple[float, float]:
        """Distances from the mean to the least and to the greatest seed."""
        values = self.values(name)
        return float(values.mean() - values.min()), float(values.max() - values.mean())

    @property
    def objectives(self) -> tuple[float, float]:
        """Utility and unlearn quality; more is better."""
        return self.mean("utility"), self.mean("quality")

    @property
    def untuned(self) -> str | None:
        """What its runs say of settings that were chosen for another method; None if nothing."""
        return next((outcome.untuned for outcome in self.outcomes if outcome.untuned), None)


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Directories of finished runs, and those of unfinished ones, at or below `paths`.

    Raises:
        UserError: naming a path that holds no run.
    """
    finished: dict[Path, None] = {}
    unfinished: dict[Path, None] = {}
    for path in paths:
        configs = sorted({*path.glob("config.yaml"), *path.glob("*/config.yaml")})
        if not configs:
            raise UserError(f"{path}: no run here; expected the directory of a run or of runs")
        for config in configs:
            done = (config.parent / "summary.json").is_file()
            (finished if done else unfinished)[config.parent] = None
    return list(finished), list(unfinished)


def read_outcome(directory: Path, *, redact: bool = False) -> Outcome:
    """The run in `directory`.

    Args:
        redact: whether to mask what is to be forgotten (`redaction`).

    Raises:
        UserError: if its summary lacks the method, unlearn quality or utility, or if it cannot
            be redacted.
    """
    path, shown = directory / SUMMARY, str(directory)
    summary = read_object(path, finite=True)
    inputs = read_object(directory / INPUTS, missing_ok=True)
    if redact:
        config = read_text(directory / CONFIG, missing_ok=True)
        summary, shown = masked_summary(directory, summary, config, inputs)
    after, settings = summary.get("after") or {}, summary.get("settings") or {}
    quality, utility = number(after.get("unlearn_quality")), number(after.get("utility"))
    if quality is None or utility is None:
        raise UserError(f"{path}: no unlearn quality or no utility; a comparison needs both")
    if (method := settings.get("method.name")) is None:
        raise UserError(f"{path}: the settings have no method.name; a comparison needs it")
    seconds = summary.get("seconds") or {}
    return Outcome(
        path=shown,
        method=str(method),
        seed=int(settings.get("seed", 0)),
        settings=settings,
        quality=quality,
        utility=utility,
        before=number((summary.get("before") or {}).get("utility")),
        minutes=sum(number(seconds[part]) or 0.0 for part in seconds.keys() - NOT_WORK) / 60,
        steps=int(summary.get("steps", 0)),
        further={key: value for key in FURTHER if (value := number(after.get(key))) is not None},
        untuned=summary.get("untuned"),
        rows=inputs.get(EVALUATION_ROWS),
        layout=inputs.get("layout"),
        prompt=(summary.get("prompt") or {}).get("prompt_text"),
        target=inputs.get("model weights"),
    )


def check_comparable(outcomes: Sequence[Outcome], over: str = "") -> list[str]:
    """Check that the numbers of runs can be compared; what speaks against it, in sentences.

    Args:
        over: the setting whose effect is compared. What it alone decides is meant to differ.

    Raises:
        UserError: if two runs were evaluated on different rows, or on the same in another order.
    """
    found = []
    if not over.startswith("data."):
        for layout in {outcome.layout for outcome in outcomes}:
            if pair := _unlike([own for own in outcomes if own.layout == layout], "rows"):
                raise UserError(
                    f"{pair[0].path} and {pair[1].path} were evaluated on different rows, or in "
                    "another order; expected runs that were evaluated on the same data"
                )
    if not over.startswith("data.") and (pair := _unlike(outcomes, "rows")):
        found.append(
            f"The runs were made by different versions of pmc_jax ({pair[0].path}, "
            f"{pair[1].path}), so it is not known whether they were evaluated on the same rows."
        )
    if not over.startswith("prompt.") and (pair := _unlike(outcomes, "prompt")):
        found.append(
            f"The models were asked with different prompts ({pair[0].path}, {pair[1].path}), so "
            "their numbers may not be comparable."
        )
    if not over.startswith("model.") and (pair := _unlike(outcomes, "target")):
        found.append(
            f"The runs began with different target models ({pair[0].path}, {pair[1].path})."
        )
    if differing := _measured_differently(outcomes, over):
        found.append(
            f"The models were measured with different settings ({', '.join(differing)}), so their "
            "numbers may not be comparable."
        )
    unknown = sum(outcome.rows is None or outcome.prompt is None for outcome in outcomes)
    if unknown and len(outcomes) > 1:
        found.append(
            f"{unknown} of {len(outcomes)} runs have not recorded the rows and the prompt that "
            "they were evaluated with, so these cannot be compared."
        )
    return found


def _unlike(outcomes: Sequence[Outcome], name: str) -> tuple[Outcome, Outcome] | None:
    """Two runs of which `name` is known and differs."""
    known = [outcome for outcome in outcomes if getattr(outcome, name) is not None]
    for outcome in known[1:]:
        if getattr(outcome, name) != getattr(known[0], name):
            return known[0], outcome
    return None


def _measured_differently(outcomes: Sequence[Outcome], over: str) -> list[str]:
    """The settings of the measurement that differ, each with its values."""
    keys = sorted({key for o in outcomes for key in o.settings if key.startswith(MEASURED_WITH)})
    found = []
    for key in keys:
        values = list(dict.fromkeys(to_json(o.settings.get(key)) for o in outcomes))
        if len(values) > 1 and key not in (over, SPEED_ONLY):
            found.append(f"{key}: {', '.join(values)}")
    return found


def compare(outcomes: Sequence[Outcome]) -> list[Point]:
    """The configurations of `outcomes`, with dominance marked.

    Methods are in the order of their hypervolumes, the largest first.

    Raises:
        UserError: if a configuration has two runs of the same seed.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(_configuration(outcome), []).append(outcome)
    points = []
    for group in groups.values():
        group.sort(key=lambda outcome: outcome.seed)
        for a, b in itertools.pairwise(group):
            if a.seed == b.seed:
                raise UserError(f"{a.path} and {b.path} are the same configuration and seed")
        siblings = [o for o in outcomes if o.method == group[0].method]
        points.append(Point(group[0].method, tuple(group), _differing(group[0], siblings)))
    volumes = {
        method: hypervolume(point.objectives for point in points if point.method == method)
        for method in {point.method for point in points}
    }
    points.sort(key=lambda p: (-volumes[p.method], p.method, -p.mean("utility")))
    return [_marked(point, points) for point in points]


def _configuration(outcome: Outcome) -> str:
    kept = sorted((k, repr(v)) for k, v in outcome.settings.items() if k not in NOT_CONFIGURATION)
    return repr(kept)


def _differing(outcome: Outcome, siblings: Sequence[Outcome]) -> dict[str, Any]:
    return {
        key: value
        for key, value in outcome.settings.items()
        if key not in NOT_CONFIGURATION
        and any(sibling.settings.get(key) != value for sibling in siblings)
    }


def _marked(point: Point, points: Sequence[Point]) -> Point:
    own = [other for other in points if other.method == point.method]
    return Point(
        point.method,
        point.outcomes,
        point.differing,
        on_front=not any(dominates(p.objectives, point.objectives) for p in own),
        undominated=not any(dominates(p.objectives, point.objectives) for p in points),
    )


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is at least as good as `b` in everything and better in something."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def front(points: Sequence[Point], method: str) -> list[Point]:
    """The configurations of `method` that no other of it dominates, by utility."""
    chosen = [point for point in points if point.method == method and point.on_front]
    return sorted(chosen, key=lambda point: point.objectives)


def hypervolume(objectives: Iterable[Sequence[float]]) -> float:
    """Share of [0, 100]² that the points dominate: the area below their front."""
    area, height = 0.0, 0.0
    for utility, quality in sorted(objectives, key=lambda pair: -pair[0]):
        # From right to left, a point adds the part above the points to its right.
        area += max(quality - height, 0.0) * max(utility, 0.0)
        height = max(height, quality)
    return area / 100**2


def hypervolume_interval(
    points: Sequence[Point], level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of the hypervolume; seeds are resampled within each configuration.

    None if a configuration has a single seed. With few seeds the interval is too narrow: two
    seeds have three distinct means.
    """
    if not points or any(len(point.outcomes) < 2 for point in points):
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = []
        for point in points:
            chosen = rng.integers(0, len(point.outcomes), len(point.outcomes))
            pair = (point.values(name)[chosen].mean() for name in ("utility", "quality"))
            drawn.append(tuple(float(value) for value in pair))
        found.append(hypervolume(drawn))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def counts(points: Sequence[Point]) -> dict[str, int]:
    """The number of configurations of each method."""
    return dict(Counter(point.method for point in points))


def enough(points: Sequence[Point]) -> bool:
    """Whether some method has as many configurations as a front needs."""
    return max(counts(points).values(), default=0) >= ENOUGH


def reservations(points: Sequence[Point]) -> list[str]:
    """Why the comparison may be unfair to a method or due to chance, in sentences."""
    found = list(dict.fromkeys(f"{p.method}: {p.untuned}." for p in points if p.untuned))
    number_of = counts(points)
    if few := [f"{method} ({n})" for method, n in number_of.items() if n < ENOUGH]:
        found.append(
            f"Fewer than {ENOUGH} configurations: {', '.join(few)}. A single setting does not "
            "show what a method can reach."
        )
    if len(set(number_of.values())) > 1 and len(few) < len(number_of):
        tried = ", ".join(f"{method} {n}" for method, n in number_of.items())
        found.append(
            f"The methods were tried with different numbers of configurations ({tried}); more "
            "tries reach further."
        )
    if single := sorted({p.method for p in points if len(p.outcomes) == 1}):
        found.append(
            f"Configurations with one seed: {', '.join(single)}. Differences may be chance."
        )
    return found


def target_utility(outcomes: Sequence[Outcome]) -> float | None:
    """The utility of the target model, if the runs agree on it."""
    known = [outcome.before for outcome in outcomes if outcome.before is not None]
    agreed = known and all(math.isclose(value, known[0], abs_tol=1e-6) for value in known)
    return known[0] if agreed else None


def run_table(outcomes: Sequence[Outcome], points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per run: method, seed, measures, time, steps, and the settings that differ."""
    columns = sorted({key for point in points for key in point.differing})
    return [
        {
            "run": outcome.path,
            "method": outcome.method,
            "untuned": outcome.untuned,
            "seed": outcome.seed,
            "unlearn_quality": outcome.quality,
            "utility": outcome.utility,
            "minutes": outcome.minutes,
            "steps": outcome.steps,
            **{key: outcome.further.get(key) for key in FURTHER},
            **{key: outcome.settings.get(key) for key in columns},
        }
        for outcome in sorted(outcomes, key=lambda o: (o.method, o.path))
    ]


def runs_and_configurations(runs: int, configurations: int) -> str:
    """How much a comparison compares: "3 runs, 1 configuration"."""
    return (
        f"{counted(runs, 'run', 'runs')}, "
        f"{counted(configurations, 'configuration', 'configurations')}"
    )
