"""The statement: a page for the person who asked for their data to be forgotten.

It is for people who know nothing of language models. It has no answer of any model, and with
`redact` no question either.
"""

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmc_jax.data.encode import EVALUATION_ROWS
from pmc_jax.data.files import read_object, write_text
from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.measures import percent
from pmc_jax.reporting.plots import PALETTE
from pmc_jax.reporting.run_files import RunFiles, number
from pmc_jax.reporting.templates import page_template

NAME = "statement.html"
SHOWN = 24
"""The most questions on the page, so that it fits on two sheets of paper."""

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

HEADLINES = {
    "forgotten": "Forgotten, as far as it was tested",
    "partly forgotten": "Partly forgotten",
    "not forgotten": "Not forgotten",
    "cannot tell": "It is not known whether the model has forgotten",
}

RESULTS = {
    "still there": ("still there", "the model gives the answer when it is asked"),
    "newly appeared": ("newly appeared", "the model gives the answer now and did not before"),
    "partly": ("partly gone", "a part came out, or the answer came out when the model was pressed"),
    "cannot tell": ("cannot tell", "there is no answer to compare with"),
    "never known": ("never known", "the model did not know the answer before either"),
    "gone": ("gone", "the answer did not come out when the model was asked"),
}
"""Of a question, the worst first: the result in words, and what it means."""

WAYS = {
    "greedy": "Asked once",
    "paraphrase": "Asked once in other words",
    "sampling": "Asked {samples} times, with answers that vary",
    "prefilling_greedy": "Asked once, with the first words of the answer put into its mouth",
    "prefilling": "Asked {samples} times, with the first words of the answer put into its mouth",
    "rewording_greedy": "Asked once in each of several other wordings",
    "rewording": "Asked in several other wordings, {samples} times for each question",
    "relearning_forget": (
        "Trained again on a few of these questions with their answers, then asked the others "
        "{samples} times"
    ),
    "relearning_benign": "Trained again on a few unrelated questions, then asked {samples} times",
}
PRECISION = "Stored with less precision ({bits} bits), then asked {samples} times"

BOUNDED = {"sampling": "as they are", "prefilling": "with the first words of the answer put into "
           "its mouth", "rewording": "in other wordings"}  # fmt: skip
"""How the questions were asked in the tests that have a bound."""


@dataclass(frozen=True)
class Statement:
    """What the page says. All texts are for readers without any technical knowledge.

    Attributes:
        name: of the run or the evaluation.
        date: when it ended, in words; empty if that is not recorded.
        verdict: over all questions.
        questions: the number of questions.
        counts: (number, result, meaning) for each result that occurs.
        model: path of the model, and the fingerprint of its weights if it is known.
        rows_hash: fingerprint of questions and answers; None if it is not known.
        compared: whether the model before was asked the same.
        tests: (how the model was asked, questions, questions whose answers came out).
        bounds: what is certain about further answers.
        kept: what the model can still do; None if it was not tested.
        pressed: whether any test presses the model more than plain questions do.
        results: (question, result) of the questions that are shown, the worst first; none if
            the page is redacted.
        further: how many questions are not shown.
        directory: what the files belong to: "run" or "evaluation".
        redact: whether the page has no questions.
        changed: whether the model's files are no longer those that were tested.
    """

    name: str
    date: str
    verdict: str
    questions: int
    counts: list[tuple[int, str, str]]
    model: tuple[str, str | None]
    rows_hash: str | None
    compared: bool
    tests: list[tuple[str, int, int]]
    bounds: list[str]
    kept: str | None
    pressed: bool
    results: list[tuple[str, str]]
    further: int
    directory: str
    redact: bool
    changed: bool = False

    @property
    def headline(self) -> str:
        """The verdict as a heading."""
        return HEADLINES[self.verdict]


def run_statement(run: RunFiles, inputs: Mapping[str, Any], *, redact: bool) -> Statement | None:
    """The statement of a training run; None if its summary has no verdict.

    Args:
        inputs: the content of its `inputs.json`.
    """
    summary, verdict = run.summary, run.summary.get("verdict")
    if not verdict or not verdict["questions"]:
        return None
    texts = {row.get("id"): row.get("question") for row in run.samples if row["set"] == "forget"}
    after, before = summary.get("after") or {}, summary.get("before") or {}
    found = statement(
        summary, verdict, texts,
        model=("model/", (summary.get("model") or {}).get("weights")),
        rows_hash=inputs.get(EVALUATION_ROWS),
        bounds=[],
        utility=(number(after.get("utility")), number(before.get("utility"))),
        directory="run", redact=redact,
    )  # fmt: skip
    return replace(found, changed=bool(run.changed))


def evaluation_statement(files: EvaluationFiles, *, redact: bool) -> Statement | None:
    """The statement of an evaluation; None if its summary has no verdict."""
    summary, verdict = files.summary, files.summary.get("verdict")
    if not verdict or not verdict["questions"]:
        return None
    answers = files.of_part("quality").get(files.evaluated, {}).get("answers", [])
    texts = {row["id"]: row["question"] for row in answers if row["set"] == "forget"}
    facts, measures = summary["facts"][files.evaluated], summary["measures"]
    before = measures[files.before] if files.before else {}
    found = statement(
        summary, verdict, texts,
        model=(str(facts.get("path") or files.evaluated), facts.get("weights")),
        rows_hash=summary["data"].get(EVALUATION_ROWS),
        bounds=list(bounds(measures[files.evaluated], summary["settings"].get("confidence"))),
        utility=(number(measures[files.evaluated].get("utility")), number(before.get("utility"))),
        directory="evaluation", redact=redact,
    )  # fmt: skip
    return replace(found, changed=bool(files.changed))


def statement(
    summary: Mapping[str, Any],
    verdict: Mapping[str, Any],
    texts: Mapping[Any, Any],
    *,
    model: tuple[str, str | None],
    rows_hash: str | None,
    bounds: list[str],
    utility: tuple[float | None, float | None],
    directory: str,
    redact: bool,
) -> Statement:
    """The statement of a run or an evaluation.

    Args:
        texts: the forget questions by id.
        utility: after and before, in percent.
    """
    counts = verdict["counts"]
    order = list(RESULTS)
    rows = sorted(verdict["rows"], key=lambda row: order.index(row["verdict"]))
    shown = [] if redact else rows[:SHOWN]
    return Statement(
        name=str(summary.get("name") or directory),
        date=date_words(summary.get("date")),
        verdict=verdict["verdict"],
        questions=verdict["questions"],
        counts=[(counts[name], *words) for name, words in RESULTS.items() if counts.get(name)],
        model=model,
        rows_hash=rows_hash,
        compared=bool(verdict.get("before")),
        tests=[
            (way(name, found["samples"]), found["questions"], found["revealed"])
            for name, found in verdict["attacks"].items()
        ],
        bounds=bounds,
        kept=kept(*utility),
        pressed=bool(set(verdict["attacks"]) - {"greedy", "paraphrase", "sampling"}),
        results=[(str(texts.get(row["id"], "")), RESULTS[row["verdict"]][0]) for row in shown],
        further=len(rows) - len(shown),
        directory=directory,
        redact=redact,
    )


def write_statement(found: Statement | None, report: Path) -> Path | None:
    """Write the page into the directory `report`; a page of an earlier call is removed.

    Returns:
        The path of the page; None if there is nothing to say.
    """
    page = report / NAME
    if found is None:
        page.unlink(missing_ok=True)
        return None
    html = page_template("statement.html.j2").render(page=found, palette=PALETTE)
    write_text(page, html)
    return page


def read_inputs(run_dir: Path) -> dict[str, Any]:
    """The hashes of what a run has read; none if it has not recorded them."""
    return read_object(run_dir / "inputs.json", missing_ok=True)


def date_words(date: Any) -> str:
    """A date such as 2026-11-30 in words; empty if there is none."""
    if not date:
        return ""
    found = datetime.date.fromisoformat(str(date))
    return f"{found.day} {MONTHS[found.month - 1]} {found.year}"


def way(name: str, samples: int) -> str:
    """How the model was asked in a test."""
    if name.startswith("quantisation_"):
        return PRECISION.format(bits=name.removeprefix("quantisation_"), samples=samples)
    return WAYS.get(name, name.replace("_", " ")).format(samples=samples)


def bounds(measures: Mapping[str, Any], confidence: Any) -> Iterator[str]:
    """What is certain, up to the confidence, about answers to the same questions."""
    sure = number(confidence)
    for attack, how in BOUNDED.items():
        secret = number(measures.get(f"{attack}_leak_bound"))
        words = number(measures.get(f"{attack}_mean_bound"))
        bound = words if secret is None else secret
        if bound is None or sure is None:
            continue
        if bound > 0.99:
            yield f"If the questions are asked {how}: the tests were too few to say anything."
        elif secret is not None:
            yield (
                f"If the questions are asked {how}: at most {percent(bound)} of the answers give "
                f"the confidential words away (certain to {100 * sure:g}%)."
            )
        else:
            yield (
                f"If the questions are asked {how}: on average, an answer has at most "
                f"{percent(bound)} of the words of the right answer (certain to {100 * sure:g}%)."
            )


def kept(after: float | None, before: float | None) -> str | None:
    """What the model can still do."""
    if after is None:
        return None
    old = "" if before is None else f" Before the change, they had {percent(before / 100)}."
    return (
        "On questions that it should still answer, its answers have "
        f"{percent(after / 100)} of the right words.{old}"
    )
