"""The report of an evaluation as one self-contained page."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pmc_jax.reporting.evaluation_files import EvaluationFiles, read_evaluation
from pmc_jax.reporting.evaluation_plots import evaluation_plots
from pmc_jax.reporting.examples import Example, ExampleGroup, example_groups, text_of
from pmc_jax.reporting.findings import comparisons, evaluation_headline, findings
from pmc_jax.reporting.page import (
    PAPER_URL,
    drawn,
    durations,
    plain_lines,
    settings_lines,
    time_text,
)
from pmc_jax.reporting.plots import PALETTE, Plot, write_png, write_svg
from pmc_jax.reporting.redaction import Redaction, hidden_example, redacted_evaluation
from pmc_jax.reporting.sampled_answers import ATTACK_WORDS, sampled_groups
from pmc_jax.reporting.side_by_side import compared_rows
from pmc_jax.reporting.statement import evaluation_statement, write_statement
from pmc_jax.reporting.templates import page_template
from pmc_jax.reporting.text import short_names
from pmc_jax.reporting.verdict import verdict_section

SAMPLING = frozenset({"sampling", "prefilling", "rewording", "relearning", "quantisation"})
USED_BY = {
    "evaluation.attack_samples": SAMPLING,
    "evaluation.attack_temperature": SAMPLING,
    "confidence": SAMPLING,
    "prefix": frozenset({"prefilling"}),
    "robustness.examples": frozenset({"relearning"}),
    "robustness.steps": frozenset({"relearning"}),
    "robustness.batch_size": frozenset({"relearning"}),
    "robustness.learning_rate": frozenset({"relearning"}),
    "robustness.bits": frozenset({"quantisation"}),
}
"""The parts that depend on a setting; all parts depend on other settings."""


def write_evaluation_report(
    directory: Path, *, redact: bool | None = None, changed: Sequence[str] = ()
) -> Path:
    """Write `directory`/report/index.html, its figures beside it, and the statement.

    Reads summary.json, config.yaml and the models' parts. The same files give the same bytes.

    Args:
        redact: whether to hide what is to be forgotten (`redaction`); None: as in the
            evaluation's settings.
        changed: what `changed_export` has found, for a warning.

    Returns:
        The path of the page.

    Raises:
        UserError: if the summary is missing or a file is malformed.
    """
    files = read_evaluation(directory).with_changed(changed)
    if redact is None:
        redact = bool(files.summary["settings"].get("redact"))
    files, redaction = redacted_evaluation(files) if redact else (files, None)
    plots = evaluation_plots(files)
    report = directory / "report"
    report.mkdir(exist_ok=True)
    for plot in plots:
        write_png(plot, report / f"{plot.name}.png")
        write_svg(plot, report / f"{plot.name}.svg")
    page = report / "index.html"
    page.write_text(render_evaluation(files, plots, redaction), encoding="utf-8", newline="\n")
    write_statement(evaluation_statement(files, redact=redact), report)
    return page


def shown_summary(directory: Path, *, redact: bool | None = None) -> dict[str, Any]:
    """The summary of an evaluation for the terminal.

    Args:
        redact: as of `write_evaluation_report`.
    """
    files = read_evaluation(directory)
    if redact is None:
        redact = bool(files.summary["settings"].get("redact"))
    return (redacted_evaluation(files)[0] if redact else files).summary


def render_evaluation(
    files: EvaluationFiles, plots: list[Plot], redaction: Redaction | None = None
) -> str:
    """The page's HTML. Everything from the evaluation's files is escaped by the template.

    Args:
        redaction: what was removed from `files`, if they were redacted.
    """
    summary = files.summary
    rows = compared_rows(summary)
    seconds, names = summary["seconds"], short_names(files.models)
    return page_template("evaluation.html.j2").render(
        name=summary["name"],
        suite=summary["suite"],
        evaluated=files.evaluated,
        before=files.before,
        models=files.models,
        short=names,
        headings=[(model, breakable(short)) for model, short in names.items()],
        verdict=verdict_section(summary["verdict"]),
        headline=evaluation_headline(summary),
        warnings=summary.get("warnings") or [],
        untuned=[
            (model, sentence) for model in files.models
            if (sentence := summary["facts"][model].get("untuned"))
        ],
        findings=findings(summary),
        comparisons=list(comparisons(summary)),
        arrows={measure.arrow for measure, _ in rows},
        measure_groups=[
            (group, list(members))
            for group, members in groupby(rows, lambda row: row[0].group)
        ],
        lacking=[
            (what.replace("_", " "), reason) for what, reason in summary["lacking"].items()
        ],
        certificates=[
            (model, [(ATTACK_WORDS.get(attack, attack), words) for attack, words in found.items()])
            for model, found in certificates_of(files)
        ],
        plots=drawn(plots),
        example_groups=evaluation_examples(files),
        sampled_groups=sampled_groups(files),
        redaction=redaction,
        settings=[line for line in settings_lines(summary["settings"]) if used(line[2], summary)],
        facts=[
            *((model, list(plain_lines(summary["facts"][model]))) for model in files.models),
            ("Data (SHA-256)", list(plain_lines(summary["data"]))),
            ("Versions", list(plain_lines(summary["versions"]))),
        ],
        durations=durations(
            {m: seconds[m] for m in files.models},
            {f"{m}.{part}": f"{names[m]}: {part.replace('_', ' ')}"
             for m in files.models for part in seconds[m]},
        ),
        total=sum(value for part in seconds.values() for value in part.values()),
        compiled=any(part.get("compiling") for part in seconds.values()),
        time_text=time_text,
        config=files.config,
        palette=PALETTE,
        paper_url=PAPER_URL,
    )  # fmt: skip


def used(setting: str, summary: Mapping[str, Any]) -> bool:
    """Whether a measured part depends on a setting."""
    parts = {part for seconds in summary["seconds"].values() for part in seconds}
    return setting not in USED_BY or bool(parts & USED_BY[setting])


def breakable(name: str) -> list[str]:
    """A name in pieces between which a line may break."""
    return re.findall(r"[^-_~/]*[-_~/]+|[^-_~/]+", name)


def certificates_of(files: EvaluationFiles) -> list[tuple[str, dict[str, str]]]:
    """Every model's certificates; the model under evaluation comes first."""
    order = sorted(files.models, key=lambda model: model != files.evaluated)
    return [(model, found) for model in order if (found := files.summary["certificates"][model])]


def evaluation_examples(files: EvaluationFiles) -> list[ExampleGroup]:
    """Answers of the model under evaluation, beside those of the model before unlearning."""
    quality = files.of_part("quality")
    new = quality.get(files.evaluated, {}).get("answers", [])
    old_rows = quality.get(files.before or "", {}).get("answers", new)
    old = {(row.get("set"), row.get("id")): row for row in old_rows}
    samples = [example_row(old.get((row.get("set"), row.get("id")), {}), row) for row in new]
    groups = example_groups(samples, files.summary["verdict"])
    groups = [group.changed(hidden_example) for group in groups]
    if files.before:
        return groups
    return [group if group.forgotten else group.changed(Example.unmarked) for group in groups]


def example_row(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A row in the layout of `samples.jsonl`."""
    return {
        "set": after.get("set"),
        "id": after.get("id"),
        "question": after.get("question"),
        "before": before.get("text"),
        "after": text_of(after.get("text")),
        "rouge_before": before.get("rouge"),
        "rouge_after": after.get("rouge"),
        "facts_before": before.get("facts"),
        "facts_after": after.get("facts"),
        "marks_before": before.get("marks", []),
        "marks_after": after.get("marks", []),
    }
