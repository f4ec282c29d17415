"""The report of a run as one self-contained page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pmc_jax.reporting.examples import example_groups
from pmc_jax.reporting.measures import headline, measured_rows, unmeasured
from pmc_jax.reporting.plots import PALETTE, Plot, run_plots, themed_svg, write_png
from pmc_jax.reporting.redaction import Redaction, hidden_example, redacted_run
from pmc_jax.reporting.run_files import RunFiles, number, older_version, read_run
from pmc_jax.reporting.statement import read_inputs, run_statement, write_statement
from pmc_jax.reporting.templates import page_template
from pmc_jax.reporting.verdict import verdict_section
from pmc_jax.settings import flat

PAPER_URL = "https://arxiv.org/abs/2507.04219"

SETTING_WORDS = {
    "method.name": "method",
    "method.samples": "answers sampled per question, n",
    "method.temperature": "sampling temperature",
    "method.final_temperature": "sampling temperature at the last step",
    "method.keep_sampling": "sampling continues after a score of 0",
    "method.beginnings": "visits with a forced beginning, besides each visit without one",
    "method.offer_refusals": "a refusal takes part in every selection",
    "method.top_k": "most likely tokens to sample from, top-k (0: all)",
    "method.top_p": "probability mass to sample from, top-p",
    "method.max_new_tokens": "most tokens of a sampled answer",
    "method.selection_temperature": "temperature of the selection, τ (0: the best sample)",
    "method.min_len": "fewest words of an answer without a penalty",
    "method.reject_wordless": "answers without a word are rejected",
    "method.pairs": "pairs trained on",
    "method.refusals": "file of refusals",
    "method.alternatives": "file of alternative answers",
    "method.kept": "sampled answers that are kept as alternatives",
    "method.alpha": "exponent of a token's probability, α",
    "method.beta": "strength or inverse temperature of the loss, β",
    "method.gamma": "margin of the loss, γ",
    "method.beta1": "exponent of the saturation, β₁",
    "method.beta2": "exponent of the importance, β₂",
    "method.skipped_tokens": "first tokens of an answer that have no loss",
    "method.layer": "layer whose activations are steered",
    "method.trained_layers": "layers updated",
    "method.steering": "norm of the vector to which activations are steered, c",
    "method.retain_loss": "retain loss",
    "method.retain_weight": "weight of the retain loss, λ",
    "method.final_retain_weight": "weight of the retain loss at the last step",
    "method.retain_per_forget": "retain examples per forget question in a step",
    "training.epochs": "epochs",
    "training.batch_size": "forget questions in a micro-batch",
    "training.accumulation": "micro-batches in a step",
    "training.max_length": "most tokens of prompt and answer together",
    "optimizer.learning_rate": "highest learning rate",
    "optimizer.weight_decay": "weight decay",
    "suite": "suite",
    "evaluation.attack_samples": "answers sampled per question in the attack",
    "evaluation.attack_temperature": "temperature of the attack",
    "prefix": "forced beginning in the prefilling attack",
    "confidence": "confidence of every certified bound",
    "robustness.examples": "relearning: most examples",
    "robustness.steps": "relearning: steps",
    "robustness.batch_size": "relearning: examples in a step",
    "robustness.learning_rate": "relearning: learning rate",
    "robustness.bits": "quantisation: bits",
    "seed": "seed",
}
"""Descriptions of the settings that a page lists first. It lists all of the method's."""
PART_WORDS = {
    "evaluate_before": "evaluate before",
    "target_model": "what the target model decides",
    "sample": "steps: sample",
    "score": "steps: score",
    "prepare": "steps: prepare batches",
    "train": "steps: train",
    "evaluate_after": "evaluate after",
}
"""Descriptions of the parts of a run's time; other parts appear under their own names."""


def write_report(run_dir: Path, *, redact: bool = False, changed: Sequence[str] = ()) -> Path:
    """Write `run_dir`/report/index.html, its plots as PNG files beside it, and the statement.

    Reads summary.json and, if they exist, metrics.jsonl, samples.jsonl and config.yaml. The
    same files give the same bytes.

    Args:
        redact: whether to hide what is to be forgotten (`redaction`).
        changed: what `changed_files` has found, for a warning.

    Returns:
        The path of the page.

    Raises:
        UserError: if the summary is missing or a file is malformed.
    """
    run, redaction = read_run(run_dir).with_changed(changed), None
    if redact:
        run, redaction = redacted_run(run_dir, run)
    plots = run_plots(run.summary, run.metrics)
    directory = run_dir / "report"
    directory.mkdir(exist_ok=True)
    for plot in plots:
        write_png(plot, directory / f"{plot.name}.png")
    page = directory / "index.html"
    page.write_text(render(run, plots, redaction), encoding="utf-8", newline="\n")
    write_statement(run_statement(run, read_inputs(run_dir), redact=redact), directory)
    return page


def drawn(plots: Sequence[Plot]) -> dict[str, tuple[Plot, Markup]]:
    """Plots by name with their drawings.

    Matplotlib's SVG is the only text that is not escaped again: matplotlib escapes it.
    """
    return {plot.name: (plot, Markup(themed_svg(plot))) for plot in plots}


def render(run: RunFiles, plots: Sequence[Plot], redaction: Redaction | None = None) -> str:
    """The page's HTML. Everything from the run's files is escaped by the template.

    Args:
        redaction: what was removed from `run`, if it was redacted.
    """
    rows = measured_rows(run.summary)
    return page_template("page.html.j2").render(
        name=run.summary.get("name") or "run",
        verdict=verdict_section(run.summary.get("verdict")),
        headline=headline(run.summary),
        measure_groups=[
            (group, list(members))
            for group, members in groupby(rows, lambda row: row.measure.group)
        ],
        unmeasured=unmeasured(run.summary),
        plots=drawn(plots),
        steps=len(run.metrics),
        sentence=(run.summary.get("method") or {}).get("sentence"),
        untuned=run.summary.get("untuned"),
        warnings=list(
            filter(None, [older_version(run.summary), *(run.summary.get("warnings") or [])])
        ),
        example_groups=[
            group.changed(hidden_example)
            for group in example_groups(run.samples, run.summary.get("verdict"))
        ],
        redaction=redaction,
        settings=list(settings_lines(run.summary.get("settings"))),
        facts=[
            (title, list(plain_lines(run.summary.get(key))))
            for title, key in (("Model", "model"), ("Prompt", "prompt"), ("Versions", "versions"))
        ],
        durations=durations(run.summary.get("seconds")),
        total=number((run.summary.get("seconds") or {}).get("total")),
        time_text=time_text,
        config=run.config,
        palette=PALETTE,
        paper_url=PAPER_URL,
    )


def settings_lines(settings: Any) -> Iterator[tuple[str, str, str]]:
    """(description, value, key) of the settings that a page lists."""
    known = flat(settings or {})
    order = {key: position for position, key in enumerate(SETTING_WORDS)}
    last = max(position for key, position in order.items() if key.startswith("method."))
    for key in sorted(known, key=lambda key: order.get(key, last)):
        if key in SETTING_WORDS or key.startswith("method."):
            words = key.partition(".")[2].replace("_", " ")
            yield SETTING_WORDS.get(key, words), value_text(known[key]), key


def plain_lines(values: Any) -> Iterator[tuple[str, str]]:
    """(name, value) of every entry, nested keys joined by dots."""
    for key, value in flat(values or {}).items():
        yield key, value_text(value)


def value_text(value: Any) -> str:
    """A setting's value as text."""
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
    """(part, time in words, percent of the longest part) of every part, without the total.

    Args:
        words: descriptions of the parts by dotted key.
    """
    known = [
        (key, value)
        for key, value in flat(seconds or {}).items()
        if key != "total" and number(value) is not None
    ]
    longest = max((value for _, value in known), default=0) or 1
    return [
        (words.get(key, key.replace("_", " ")), time_text(value), 100 * value / longest)
        for key, value in known
    ]


def time_text(seconds: float) -> str:
    """A time in words, for example 0.4 s, 12 s, 3 min 8 s or 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
