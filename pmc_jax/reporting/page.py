"""The report of a run as one page that needs nothing but itself."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rapidfuzz.distance import LCSseq

from pmc_jax.reporting.measures import headline, measured_rows, unmeasured
from pmc_jax.reporting.plots import PALETTE, Plot, run_plots, themed_svg, write_png
from pmc_jax.reporting.run_files import RunFiles, number, read_run
from pmc_jax.reporting.text import spread
from pmc_jax.rouge import rouge_words

PAPER_URL = "https://arxiv.org/abs/2507.04219"

# The sets of samples.jsonl: title, what a reader should see, how many are shown.
EXAMPLE_SETS = {
    "forget": ("Forgotten", "Questions whose answers had to go.", 6),
    "paraphrase": ("Forgotten, in other words", "The same questions, put differently.", 2),
    "retain": ("Kept", "Ordinary questions the model was told to keep.", 3),
    "world_facts": ("World facts", "General knowledge it was not trained on here.", 3),
    "real_authors": ("Real authors", "Real people, close to what is forgotten.", 2),
}
FORGOTTEN = ("forget", "paraphrase")  # sets where words of the old answer are marked
MOST_LEAKING = 3

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


@dataclass(frozen=True)
class Span:
    """A piece of an answer, marked or not (`marked_spans`)."""

    text: str
    marked: bool


@dataclass(frozen=True)
class Example:
    """One question, the old answer, the new one in spans, and their ROUGE if known.

    A page says of what is hidden only that it is.
    """

    question: str
    before: str
    after: list[Span]
    rouge_before: float | None
    rouge_after: float | None
    before_hidden: bool = False
    after_hidden: bool = False

    @property
    def unchanged(self) -> bool:
        return self.before == "".join(span.text for span in self.after)


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one kind under a title; those of `forgotten` questions fill a line each."""

    title: str
    note: str
    forgotten: bool
    examples: list[Example]


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


def example_groups(samples: Sequence[dict[str, Any]]) -> list[ExampleGroup]:
    """A few examples of each set: evenly spaced, after the forget questions that leak most."""
    groups = []
    for name, (title, note, count) in EXAMPLE_SETS.items():
        rows = [row for row in samples if row.get("set") == name]
        if not rows:
            continue
        shown = spread(rows, count)
        known = any(number(row.get("rouge_after")) is not None for row in rows)
        if name == "forget" and len(rows) > count and known:
            leaking = sorted(rows, key=lambda row: -(number(row.get("rouge_after")) or 0.0))
            leaking = leaking[:MOST_LEAKING]
            shown = leaking + spread([row for row in rows if row not in leaking], count)
            note = (
                f"First the {MOST_LEAKING} questions (of {len(rows)}) with the most left of the "
                f"right answer, then {count} evenly spaced ones."
            )
        forgotten = name in FORGOTTEN
        examples = [example(row, changed=not forgotten) for row in shown]
        groups.append(ExampleGroup(title, note, forgotten, examples))
    return groups


def example(row: dict[str, Any], *, changed: bool) -> Example:
    """One row of samples.jsonl."""
    before, after = text_of(row.get("before")), text_of(row.get("after"))
    return Example(
        question=text_of(row.get("question")),
        before=before,
        after=marked_spans(before, after, changed=changed),
        rouge_before=number(row.get("rouge_before")),
        rouge_after=number(row.get("rouge_after")),
    )


def marked_spans(before: str, after: str, *, changed: bool = False) -> list[Span]:
    """`after` in spans; marked are the words that ROUGE-L counts between the answers.

    These are the words, compared by stem, of one longest common subsequence. With `changed`
    all other words are marked instead.
    """
    _, old_words = cut(before)
    pieces, new_words = cut(after)
    shared: set[int] = set()
    stems = ([stem for _, stem in words] for words in (old_words, new_words))
    for block in LCSseq.opcodes(*stems):
        if block.tag == "equal":
            shared |= {piece for piece, _ in new_words[block.dest_start : block.dest_end]}
    chosen = {piece for piece, _ in new_words} - shared if changed else shared
    # What stands between two marked words is marked with them.
    marked = [
        index in chosen or (index - 1 in chosen and index + 1 in chosen)
        for index in range(len(pieces))
    ]
    groups = groupby(zip(pieces, marked, strict=True), lambda pair: pair[1])
    spans = [Span("".join(piece for piece, _ in group), mark) for mark, group in groups]
    return [span for span in spans if span.text]


def cut(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Pieces that join to `text`, and (piece, stem) of those that are words for ROUGE."""
    pieces = re.split(r"([A-Za-z0-9]+)", text)
    return pieces, [(index, rouge_words(pieces[index])[0]) for index in range(1, len(pieces), 2)]


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


def text_of(value: Any) -> str:
    """A JSON value that should be a string, as one."""
    return "" if value is None else str(value)
