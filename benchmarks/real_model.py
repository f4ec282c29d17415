"""All methods on a real model: `python benchmarks/real_model.py --tofu DIR --work DIR`.

Fine-tunes SmolLM2-135M-Instruct on a part of TOFU, which gives the target model, and on its retain
rows alone, which gives the reference; unlearns with every method, configuration and seed of
`real_model.yaml`; and evaluates each model. After every command it writes `real_model.json`,
`real_model.csv`, and the page `docs/results.md` with its figures. What is finished is skipped and
what was stopped goes on, so the same command continues after an interruption. `real_model.json`
keeps what was measured in other work directories and on other machines. In a new one, only the
fine-tuned models, and models that need further evaluations, are trained again.

The model is a directory (`--model`), or the hub's, or made from a package (`smollm2.py`). Budgets:
`cpu` (the default) forgets 64 questions in an hour per method on two cores or less, `gpu` all of
forget10 with the paper's epochs and samples. `--tiny` tries everything in minutes on the bundled
model and data, and writes to DIR alone. `--plan` lists what would run, `--report` only writes the
results again.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import contextlib
import dataclasses
import fcntl
import itertools
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from real_model_page import write_results
from real_model_runs import Run, best_runs, record_of
from smollm2 import HUB, fetch
from tofu_subset import write_subset

from pmc_jax.assets import WORLD_DATA
from pmc_jax.data import DataConfig
from pmc_jax.data.files import read_json, write_json, write_text
from pmc_jax.data.tofu import tofu_files
from pmc_jax.errors import UserError
from pmc_jax.evaluation.summary import text_change, text_measures

HERE = Path(__file__).parent
ROOT = HERE.parent
SHORT = {"optimizer.learning_rate": "lr", "method.retain_weight": "lambda"}
ANSWER_TOKENS = 96
"""Longest evaluated answer; TOFU's have at most 82 tokens of SmolLM2."""

NEEDED = (("reference", "log"), ("target", "paper"))
"""Evaluations whose files others are compared with."""

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """One budget of `real_model.yaml`, with the work directory filled in.

    Attributes:
        model: "smollm2", or a value of `model.path`.
        prompt: how questions are put, for all commands.
        rows: how many `forget` and `retain` rows are trained on, and how many retain rows are
            `evaluated`.
        settings: settings of training by method; those of "all" for every method.
        evaluations: settings of `pmc evaluate` by the evaluation's name.
        minutes: estimated minutes by evaluation, and by method where those of the plan are wrong.
        stages: what runs, in order.
    """

    model: str
    prompt: Settings
    rows: Mapping[str, int]
    settings: Mapping[str, Settings]
    evaluations: Mapping[str, Settings]
    minutes: Mapping[str, float]
    stages: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Training:
    """One training run: a method with its settings and a seed."""

    method: str
    settings: Settings
    seed: int = 0
    title: str | None = None
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """The run's directory."""
        if self.title:
            return self.title
        settings = {**self.settings, "seed": self.seed}
        parts = [f"{SHORT.get(k, k.rpartition('.')[2])}={v}" for k, v in settings.items()]
        return "-".join([self.method, *parts])


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of the model that the run `of` has written."""

    of: str
    kind: str
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """The evaluation's directory."""
        return f"{self.of}-{self.kind}"


Step = Training | Evaluation


@dataclasses.dataclass(frozen=True)
class Work:
    """The work directory: `runs/`, `evaluations/`, `data/`, `logs/`, `model/`, `seconds.json`."""

    directory: Path

    def __getattr__(self, name: str) -> Path:
        return self.directory / name

    def summary(self, step: Step) -> Path:
        """The file that a finished step has written."""
        kind = "runs" if isinstance(step, Training) else "evaluations"
        return self.directory / kind / step.name / "summary.json"

    def finished(self, step: Step) -> bool:
        """Whether a step has come to its end."""
        return self.summary(step).is_file()


def read_budget(name: str, work: Work) -> Budget:
    """A budget of `real_model.yaml`."""
    found = yaml.safe_load((HERE / "real_model.yaml").read_text("utf-8"))[name]
    for settings in found["evaluations"].values():
        for key, value in settings.items():
            if isinstance(value, str):
                settings[key] = value.format(evaluations=work.evaluations)
    return Budget(**found)


def trainings(entry: Mapping[str, Any]) -> list[Training]:
    """The runs of an entry under `runs`: every combination of the values in its settings."""
    settings = entry.get("settings", {})
    grid = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [
        Training(
            entry["method"], dict(zip(settings, values, strict=True)),
            title=entry.get("name"), minutes=entry["minutes"],
        )
        for values in itertools.product(*grid)
    ]  # fmt: skip


def steps(budget: Budget, work: Work, results: Path) -> Iterator[Step]:
    """Everything that runs, in order.

    A stage that needs results, of the "best" runs for instance, finds those that are there when
    it is reached. A run that is known without being in the plan is none of them.

    Args:
        results: the file with the numbers so far.
    """
    known: dict[str, Training] = {}

    def evaluated(name: str, kind: str) -> Evaluation:
        return Evaluation(name, kind, budget.minutes[kind])

    def named(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            if name == "best":
                planned = [run for run in collect(work, results) if run.name in known]
                yield from (run.name for run in best_runs(planned))
            else:
                yield name

    for stage in budget.stages:
        for entry in stage.get("runs", ()):
            for run in trainings(entry):
                run = dataclasses.replace(run, minutes=budget.minutes.get(run.method, run.minutes))
                known[run.name] = run
                yield run
                yield from (evaluated(run.name, k) for k in entry.get("evaluations", ["paper"]))
        if "repeat" in stage:
            for seed, name in itertools.product(stage["seeds"], list(named([stage["repeat"]]))):
                run = dataclasses.replace(known[name], seed=seed)
                yield run
                yield evaluated(run.name, "paper")
        if "evaluate" in stage:
            of = [stage["of"]] if isinstance(stage["of"], str) else stage["of"]
            for name in named(of):
                yield evaluated(name, stage["evaluate"])


def override(key: str, value: Any) -> str:
    """A setting as an argument of the commands."""
    text = str(value)
    if isinstance(value, str | Path) and not re.fullmatch(r"[\w./:~+-]*", text):
        text = '"' + text.replace('"', '\\"') + '"'
    return f"{key}={text}"


def arguments(step: Step, budget: Budget, work: Work) -> list[str]:
    """The command line of a step, after `python -m`."""
    prompt = {f"prompt.{key}": value for key, value in budget.prompt.items()}
    settings: dict[str, Any]
    if isinstance(step, Training):
        start = original(budget, work) if step.method == "finetune" else work.runs / "target/model"
        settings = {
            "experiment": "tofu_smollm2_135m", "method": step.method,
            "model.path": start, "data.path": work.data / "training", "data.retain_rows": 32,
            "runs_dir": work.runs, "name": step.name, "seed": step.seed,
            "evaluation.attack_samples": 0, "evaluation.max_new_tokens": ANSWER_TOKENS,
            "checkpoints.every": 10, "checkpoints.keep": 1, **prompt,
            **budget.settings.get("all", {}), **budget.settings.get(step.method, {}),
            **step.settings,
        }  # fmt: skip
        return ["pmc_jax.train", *itertools.starmap(override, settings.items())]
    settings = {
        "model": "smollm2_135m", "model.path": work.runs / step.of / "model",
        "model.dtype": budget.settings.get("all", {}).get("model.dtype", "float32"),
        "data": "tofu_forget10", "data.path": work.data / "evaluation",
        "evaluations_dir": work.evaluations, "name": step.name,
        "evaluation.decode_batch": 128, "evaluation.max_new_tokens": ANSWER_TOKENS, **prompt,
        **budget.evaluations[step.kind],
    }  # fmt: skip
    return ["pmc_jax.evaluate", *itertools.starmap(override, settings.items())]


def original(budget: Budget, work: Work) -> str | Path:
    """The model before fine-tuning, as `model.path` names it."""
    return work.model if budget.model == "smollm2" else budget.model


def make_model(budget: Budget, work: Work, given: Path | None) -> None:
    """Put the original model into the work directory: from a directory, the hub, or a package."""
    if budget.model != "smollm2" or work.model.exists():
        return
    if given is not None:
        work.model.symlink_to(given.resolve(), target_is_directory=True)
        return
    from huggingface_hub import snapshot_download

    try:
        print(f"Getting {HUB} from the hub", flush=True)
        found = snapshot_download(HUB, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
        work.model.symlink_to(found, target_is_directory=True)
    except Exception as error:
        print(f"{type(error).__name__}: no access to the hub; making it from a package", flush=True)
        fetch(work.model)


def make_data(budget: Budget, work: Work, given: Path | None) -> None:
    """Write the rows that runs are trained on, and those that models are evaluated on.

    Both are directories with the layout of TOFU. Only the first has all retain rows, and only the
    second has paraphrases, wrong answers, and questions about real authors and the world.
    """
    if work.data.exists():
        return
    source = WORLD_DATA if budget.model == "bundled" else given
    if source is None:
        source = tofu_files(DataConfig(), controls=True).forget.parent
    rows, scratch = budget.rows, work.directory / "data.part"
    shutil.rmtree(scratch, ignore_errors=True)
    forget, evaluated = rows["forget"], rows["evaluated"]
    write_subset(source, scratch / "training", {"forget10": forget, "retain90": rows["retain"]})
    counts = {"forget10": forget, "forget10_perturbed": forget, "retain90": evaluated}
    write_subset(source, scratch / "evaluation", counts)
    for name in ("world_facts_perturbed.json", "real_authors_perturbed.json", "holdout10.json"):
        if (source / name).is_file():
            shutil.copy(source / name, scratch / "evaluation")
    if (source / "idontknow.jsonl").is_file():
        shutil.copy(source / "idontknow.jsonl", scratch / "training")
    if (source / "retain_perturbed.json").is_file():
        # Its rows are among those trained on, so that the model can know them.
        lines = (scratch / "training/retain90.json").read_text("utf-8").splitlines()
        trained = {json.loads(line)["question"] for line in lines}
        lines = (source / "retain_perturbed.json").read_text("utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["question"] in trained][:evaluated]
        text = "".join(f"{line}\n" for line in kept)
        write_text(scratch / "evaluation/retain_perturbed.json", text)
    scratch.rename(work.data)


def call(step: Step, budget: Budget, work: Work) -> int:
    """Run a step's command to its end; its output goes to a log, its CPU time to a file.

    If this process is asked to stop, the command is, too: a training run saves its last step.
    """
    work.logs.mkdir(exist_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (work.logs / f"{step.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments(step, budget, work)], cwd=ROOT,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            spent = read_json(work.directory / "seconds.json", missing_ok=True) or {}
            own = spent.setdefault(step.name, {"cpu": 0.0, "wall": 0.0})
            own["cpu"] += cpu
            own["wall"] += time.perf_counter() - started
            write_json(work.directory / "seconds.json", spent)


def results_file(budget: str, out: Path) -> Path:
    """The file with all numbers of a budget."""
    return out / f"real_model{'' if budget == 'cpu' else f'_{budget}'}.json"


def collect(work: Work, known: Path) -> list[Run]:
    """All finished runs with what was measured of their models.

    Those of this work directory, and those that the file `known` has from other ones. Of an
    evaluation that both have, this directory's counts.
    """
    spent = read_json(work.directory / "seconds.json", missing_ok=True) or {}
    found = {row["run"]: row for row in (read_json(known, missing_ok=True) or {"runs": []})["runs"]}
    for path in work.runs.glob("*/summary.json"):
        name, evaluations = path.parent.name, {}
        for other in sorted(work.evaluations.glob(f"{name}-*/summary.json")):
            kind = other.parent.name.removeprefix(f"{name}-")
            summary = read_json(other)
            if summary["models"] == [name]:
                evaluations[kind] = summary
                if change := side_effects(work, name, kind):
                    summary["measures"][name] |= text_measures(change)
        target = read_json(path.parent / "inputs.json").get("model weights")
        asked = read_json(part(work, name, "paper") / "quality.json", missing_ok=True) or {}
        record = record_of(
            read_json(path), evaluations, asked.get("answers", ()), spent.get(name), target
        )
        record["evaluations"] = found.get(name, {}).get("evaluations", {}) | record["evaluations"]
        found[name] = record
    return [Run(found[name]) for name in sorted(found)]


def part(work: Work, name: str, kind: str) -> Path:
    """The directory with what an evaluation found of a model."""
    return work.evaluations / f"{name}-{kind}" / "models" / name


def side_effects(work: Work, name: str, kind: str) -> Mapping[str, Any] | None:
    """How far the probabilities of unrelated text are from the target model's, if both are known.

    Each model is evaluated by itself, so the comparison is made here.
    """

    def probabilities(model: str) -> Any:
        found = read_json(part(work, model, kind) / "side_effects.json", missing_ok=True)
        return found if found and "probabilities" in found else None

    before, after = probabilities("target"), probabilities(name)
    if name == "target" or before is None or after is None:
        return None
    change = text_change(before, after)
    return None if isinstance(change, str) else change


def wanted(step: Step, only: Sequence[str]) -> bool:
    """Whether the name of a step's run begins with one of `only`.

    The target model, from which all runs start, is always wanted. Names are compared by the parts
    between hyphens.
    """
    name = step.name if isinstance(step, Training) else step.of
    start = step.name in ("target", "target-paper")
    return not only or start or any(f"{name}-".startswith(f"{begin}-") for begin in only)


def left(budget: Budget, work: Work, results: Path, only: Sequence[str]) -> Iterator[Step]:
    """The steps that are to be run, in order.

    Not those whose numbers are known from another work directory, except fine-tuning, which the
    others begin with. A model that is to be evaluated is trained here first.
    """
    plan: dict[str, Training] = {}
    begun: set[str] = set()
    for step in steps(budget, work, results):
        if isinstance(step, Training):
            plan[step.name] = step
        if not wanted(step, only) or work.finished(step):
            continue
        known = {run.name: run for run in collect(work, results)}
        if isinstance(step, Training):
            if step.method == "finetune" or step.name not in known:
                begun.add(step.name)
                yield step
        elif step.of not in known:
            yield step
        elif (step.of, step.kind) in NEEDED or step.kind not in known[step.of].evaluations:
            if step.of not in begun and not work.finished(plan[step.of]):
                begun.add(step.of)
                yield plan[step.of]
            yield step


def needed(step: Step) -> list[Step]:
    """The steps whose files a step reads."""
    if isinstance(step, Training):
        return [] if step.method == "finetune" else [Training("finetune", {}, title="target")]
    model = Training("", {}, title=step.of)
    return [model, Evaluation("reference", "log")] if step.kind == "tofu" else [model]


def show_plan(budget: Budget, work: Work, results: Path, only: Sequence[str]) -> None:
    """Print every step, whether it is finished, and the minutes of those that are not."""
    todo = list(left(budget, work, results, only))
    names = {step.name for step in todo}
    for step in steps(budget, work, results):
        if wanted(step, only):
            state = f"{step.minutes:g} min" if step.name in names else "done"
            kind = "train" if isinstance(step, Training) else "evaluate"
            print(f"{state:>8}  {kind:<9}{step.name}")
    hours = sum(step.minutes for step in todo) / 60
    print(f"{hours:.1f} hours are left, as far as is known; the best runs follow from results")


def run_all(
    budget: Budget, work: Work, options: argparse.Namespace, results: Path, docs: Path
) -> int:
    """Run every step that is left; returns how many failed."""
    failed: list[str] = []

    def write() -> None:
        write_results(collect(work, results), options.budget, budget.rows, results, docs)

    for step in left(budget, work, results, options.only):
        unfinished = [start.name for start in needed(step) if not work.finished(start)]
        if unfinished:
            print(f"{step.name}: {unfinished[0]} is not finished; left out", flush=True)
            continue
        print(f"{time.strftime('%H:%M')} {step.name} (about {step.minutes:g} min)", flush=True)
        if call(step, budget, work) != 0:
            failed.append(step.name)
            print(f"{step.name} failed: {work.logs / f'{step.name}.log'}", flush=True)
            continue
        shutil.rmtree(work.runs / step.name / "checkpoints", ignore_errors=True)  # 1.6 GB each
        write()
    write()
    print(f"Finished; {len(failed)} failed: {', '.join(failed) or 'none'}")
    return len(failed)


def stop(signum: int, frame: object) -> None:
    """End this process as an exception does, so that the command it runs is stopped first."""
    raise SystemExit(128 + signum)


def main() -> None:
    """Prepare, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="directory of runs, kept")
    parser.add_argument("--tofu", type=Path, help="directory with TOFU's files; default: the hub")
    parser.add_argument("--model", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--budget", choices=("cpu", "gpu"), default="cpu", help="how much to run; %(default)s"
    )
    parser.add_argument("--tiny", action="store_true", help="try everything on the bundled model")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME",
        help="methods, or beginnings of runs' names such as pmc-lr=1e-4",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="list what would run, and stop")
    parser.add_argument("--report", action="store_true", help="write the results, and stop")
    options = parser.parse_args()
    if options.tiny:
        options.budget = "tiny"
    if options.budget != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    work = Work(options.work.resolve())
    budget = read_budget(options.budget, work)
    results = results_file(options.budget, work.directory if options.tiny else HERE)
    docs = work.directory if options.tiny else ROOT / "docs"
    if options.plan:
        show_plan(budget, work, results, options.only)
        return
    if options.report:
        write_results(collect(work, results), options.budget, budget.rows, results, docs)
        return
    work.directory.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with (work.directory / "lock").open("w") as lock, contextlib.suppress(KeyboardInterrupt):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"another process works in {work.directory}")
        try:
            make_model(budget, work, options.model)
            make_data(budget, work, options.tofu)
        except (UserError, ValueError) as error:
            parser.error(str(error))
        sys.exit(1 if run_all(budget, work, options, results, docs) else 0)


if __name__ == "__main__":
    main()
