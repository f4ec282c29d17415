"""The report of a run as one page that needs nothing but itself."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pmc_jax.reporting.examples import example_groups
from pmc_jax.reporting.measures import headline, measured_rows, unmeasured
from pmc_jax.reporting.plots import PALETTE, Plot, run_plots, themed_svg, write_png
from pmc_jax.reporting.run_files import RunFiles, number, read_run

PAPER_URL = "https://arxiv.org/abs/2507.04219"

# What a run did to the model, by `method.name`: "The model was trained for n steps …".
TRAINED = {
    "pmc": "on its own selected answers to the questions it should forget. The answers to be "
    "forgotten were never a training target.",
    "finetune": "on questions with their answers: ordinary fine-tuning, which unlearns nothing.",
    "ga": "by gradient ascent on the answers to be forgotten.",
    "gd": "by gradient ascent on the answers to be forgotten and descent on those to keep "
    "(gradient difference).",
    "idk": "to refuse the questions it should forget, and on answers to keep.",
    "npo": "by negative preference optimisation (NPO, arXiv 2404.05868) on the answers to be "
    "forgotten, and on answers to keep.",
    "simnpo": "by negative preference optimisation without a reference model (SimNPO, arXiv "
    "2410.07163) on the answers to be forgotten, and on answers to keep.",
    "dpo": "by direct preference optimisation (DPO, arXiv 2305.18290) to prefer refusals to the "
    "answers to be forgotten, and on answers to keep.",
    "altpo": "by alternate preference optimisation (AltPO, arXiv 2409.13474) to prefer other "
    "answers to those to be forgotten, and on answers to keep.",
    "retain_only": "on answers to keep alone: a control without any unlearning. The answers to "
    "be forgotten were never a training target.",
    "wga": "by weighted gradient ascent (WGA, arXiv 2502.19301) on the answers to be forgotten, "
    "and on answers to keep.",
    "satimp": "by gradient ascent weighted by saturation and importance (SatImp, arXiv "
    "2505.11953) on the answers to be forgotten, and on answers to keep.",
    "ceu": "by cross-entropy unlearning (CE-U, arXiv 2503.01224): towards its own distribution "
    "without the tokens of the answers to be forgotten.",
    "undial": "by self-distillation (UNDIAL, arXiv 2402.10052): towards its original distribution "
    "with the tokens of the answers to be forgotten made less likely.",
    "rmu": "by representation misdirection (RMU, arXiv 2403.03218): activations at the answers to "
    "be forgotten were steered to a random vector, those at answers to keep held in place.",
}

# The settings a reader asks for first, in words; the rest stands in the configuration.
SETTING_WORDS = {
    "method.name": "method",
    "method.samples": "answers sampled per question (PMC: and visit), n",
    "method.temperature": "sampling temperature",
    "method.final_temperature": "sampling temperature at the last step",
    "method.keep_sampling": "sampling after a score of 0, too",
    "method.top_k": "tokens to draw from, top-k (0: all)",
    "method.top_p": "probability mass to draw from, top-p",
    "method.selection_temperature": "temperature of the selection, τ (0: the best sample)",
    "method.min_len": "words below which an answer is penalised",
    "method.pairs": "pairs trained on",
    "method.refusals": "file of refusals",
    "method.alternatives": "file of alternative answers",
    "method.kept": "sampled answers that become alternatives",
    "method.alpha": "exponent of a token's probability, α",
    "method.beta": "strength or inverse temperature of the loss, β",
    "method.gamma": "margin of the loss, γ",
    "method.beta1": "exponent of the saturation, β₁",
    "method.beta2": "exponent of the importance, β₂",
    "method.skipped_tokens": "first tokens of an answer without loss",
    "method.layer": "layer whose activations are steered",
    "method.trained_layers": "layers updated",
    "method.steering": "length of the vector that activations are steered to, c",
    "method.retain_loss": "retain loss",
    "method.retain_weight": "weight of the retain loss, λ",
    "method.final_retain_weight": "the same at the last step",
    "method.retain_per_forget": "retain pairs in a step for each forget question",
    "training.epochs": "visits of every forget question, epochs",
    "training.batch_size": "forget questions in a micro-batch",
    "training.accumulation": "micro-batches in a step",
    "training.max_length": "most tokens of question and answer together",
    "optimizer.learning_rate": "highest learning rate",
    "optimizer.weight_decay": "weight decay",
    "suite": "suite",
    "evaluation.attack_samples": "answers sampled per question in the attack",
    "evaluation.attack_temperature": "temperature of the attack",
    "prefix": "what the prefilling attack makes answers begin with",
    "confidence": "confidence of every bound",
    "aftermath.rows": "most rows trained on again",
    "aftermath.steps": "steps of that training",
    "aftermath.batch_size": "rows in such a step",
    "aftermath.learning_rate": "learning rate of that training",
    "aftermath.bits": "bits that weights are rounded to",
    "seed": "seed",
}
PART_WORDS = {
    "evaluate_before": "evaluate before",
    "originals": "original answers",
    "alternatives": "alternative answers",
    "sample": "unlearn: sample",
    "score": "unlearn: score",
    "batch": "unlearn: batch",
    "train": "unlearn: train",
    "evaluate_after": "evaluate after",
}


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report/index.html and its plots as PNG files beside it.

    Reads summary.json and, where they are there, metrics.jsonl, samples.jsonl and
    config.yaml. The same files give the same bytes. Returns the path of the page.
    Raises UserError if the summary is missing or a file is malformed.
    """
    run = read_run(run_dir)
    plots = run_plots(run.summary, run.metrics)
    directory = run_dir / "report"
    directory.mkdir(exist_ok=True)
    for plot in plots:
        write_png(plot, directory / f"{plot.name}.png")
    page = directory / "index.html"
    page.write_text(render(run, plots), encoding="utf-8", newline="\n")
    return page


def page_template(name: str) -> jinja2.Template:
    """A template of this package; it escapes everything that is not marked as markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pmc_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def drawn(plots: Sequence[Plot]) -> dict[str, tuple[Plot, Markup]]:
    """Plots by name with their drawings.

    The only text let through unescaped: matplotlib's SVG, which escapes what it holds.
    """
    return {plot.name: (plot, Markup(themed_svg(plot))) for plot in plots}


def render(run: RunFiles, plots: Sequence[Plot]) -> str:
    """The page's HTML. Everything from the run's files is escaped by the template."""
    rows = measured_rows(run.summary)
    method = dict(flat(run.summary.get("settings") or {})).get("method.name", "pmc")
    return page_template("page.html.j2").render(
        name=run.summary.get("name") or "run",
        headline=headline(run.summary),
        measure_groups=[
            (group, list(members))
            for group, members in groupby(rows, lambda row: row.measure.group)
        ],
        unmeasured=unmeasured(run.summary),
        plots=drawn(plots),
        steps=len(run.metrics),
        method=method,
        trained=TRAINED.get(method, f"by the method {method}."),
        example_groups=example_groups(run.samples),
        settings=list(settings_lines(run.summary.get("settings"))),
        facts=[
            (title, list(plain_lines(run.summary.get(key))))
            for title, key in (("Model", "model"), ("Versions", "versions"))
        ],
        durations=durations(run.summary.get("seconds")),
        total=number((run.summary.get("seconds") or {}).get("total")),
        time_text=time_text,
        config=run.config,
        palette=PALETTE,
        paper_url=PAPER_URL,
    )


def settings_lines(settings: Any) -> Iterator[tuple[str, str, str]]:
    """(words, value, key) of the settings that have words."""
    known = dict(flat(settings or {}))
    for key, words in SETTING_WORDS.items():
        if key in known:
            yield words, value_text(known[key]), key


def plain_lines(values: Any) -> Iterator[tuple[str, str]]:
    """(name, value) of every entry, nested keys joined by dots."""
    for key, value in flat(values or {}):
        yield key, value_text(value)


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with their dotted keys."""
    if not isinstance(values, dict):
        yield prefix, values
        return
    for key, value in values.items():
        yield from flat(value, f"{prefix}.{key}" if prefix else str(key))


def value_text(value: Any) -> str:
    """A setting's value as a person writes it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(value_text(item) for item in value)
        case _:
            return str(value)


def durations(seconds: Any, words: Mapping[str, str] = PART_WORDS) -> list[tuple[str, str, float]]:
    """(part, time in words, percent of the longest part) of every part, without their total.

    `words` are of the parts, by their dotted keys.
    """
    known = [
        (key, value)
        for key, value in flat(seconds or {})
        if key != "total" and number(value) is not None
    ]
    longest = max((value for _, value in known), default=0) or 1
    return [
        (words.get(key, key.replace("_", " ")), time_text(value), 100 * value / longest)
        for key, value in known
    ]


def time_text(seconds: float) -> str:
    """For instance 0.4 s, 12 s, 3 min 8 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
