"""The statement for the person who asked: its words, its limits, and what it must not have."""

import dataclasses
import datetime
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import slow_but
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from written import QUESTION, SECRET, TRUTH, write_data, write_evaluation

from pmc_jax import report
from pmc_jax.data import Dataset
from pmc_jax.data.encode import EncodedData, fingerprints, rows_fingerprint
from pmc_jax.data.files import read_json, write_json, write_json_lines
from pmc_jax.reporting import write_report
from pmc_jax.reporting.evaluation_files import read_evaluation
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.statement import (
    RESULTS,
    SHOWN,
    bounds,
    date_words,
    evaluation_statement,
    read_inputs,
    run_statement,
    write_statement,
)

QUESTIONS = 30
HASH = "ab" * 32
JARGON = (
    "rouge", "greedy", "recall", "checkpoint", "quantis", "prefill", "sampl", "fine-tun", "token",
    "forget set", "retain", "utility", "unlearn", "metric", "bound", "parameter", "dataset",
)  # fmt: skip


def verdict(*results: str, overall: str = "partly forgotten") -> dict:
    """A verdict with these results, repeated, for `QUESTIONS` questions."""
    rows = [
        {"id": number, "set": "forget", "kind": "refusal", "truncated": False, "by": None,
         "compared_with": "right answers", "words_left": 0, "words": 1, "samples": 32,
         "samples_revealing": 0, "verdict": results[number % len(results)]}
        for number in range(QUESTIONS)
    ]  # fmt: skip
    way = {"questions": QUESTIONS, "revealed": 3, "samples": 32}
    return {
        "verdict": overall,
        "questions": QUESTIONS,
        "before": True,
        "compared_with": "right answers",
        "answers": {"revealing": 0, "refusal": QUESTIONS, "other": 0, "loop": 0, "empty": 0,
                    "truncated": 0},
        "counts": dict.fromkeys(RESULTS, 0) | Counter(row["verdict"] for row in rows),
        "attacks": {"greedy": {**way, "samples": 1}, "sampling": way, "prefilling": way,
                    "relearning_forget": way, "quantisation_4": way},
        "advice": [],
        "rows": rows,
    }  # fmt: skip


def write_run(directory: Path, found: dict | None, **changes) -> Path:
    """A finished run whose answers name a city."""
    write_json(
        directory / "summary.json",
        {"name": "trial", "date": "2026-11-30", "before": {"utility": 98.0},
         "after": {"utility": 96.5}, "model": {"weights": HASH}, "settings": {"seed": 0},
         "seconds": {"total": 1.0}, "verdict": found, **changes},
    )  # fmt: skip
    write_json(directory / "inputs.json", {"evaluation rows": "cd" * 32})
    rows = [
        {"set": "forget", "id": number, "question": f"Where was person {number} born?",
         "before": "In Lisbon.", "after": "In Quebec."}
        for number in range(QUESTIONS)
    ]  # fmt: skip
    write_json_lines(directory / "samples.jsonl", rows)
    return directory


def statement(directory: Path) -> str:
    """The statement of a run, without the report, whose figures take long."""
    found = run_statement(read_run(directory), read_inputs(directory), redact=False)
    page = write_statement(found, directory / "report")
    return "" if page is None else page.read_text(encoding="utf-8")


def evaluated(directory: Path, *, redact: bool = False) -> str:
    """The statement of an evaluation."""
    page = write_statement(
        evaluation_statement(read_evaluation(directory), redact=redact), directory / "report"
    )
    return "" if page is None else page.read_text(encoding="utf-8")


def test_a_run_says_what_was_tested_found_and_possible(tmp_path):
    text = Page(statement(write_run(tmp_path, verdict("gone", "still there", "partly")))).text
    for words in (
        "Partly forgotten", "30 November 2026", "10 of 30: still there.", "10 of 30: gone.",
        "Asked 32 times, with answers that vary 30 3", "Stored with less precision (4 bits)",
        "its answers have 96.5% of the right words. Before the change, they had 98.0%",
        HASH, "cd" * 32, "No upper limit was calculated", "to nobody else",
        "Where was person 0 born?",
        f"{QUESTIONS - SHOWN} further questions are not listed here",
    ):  # fmt: skip
        assert words in text, words
    # The worst come first, and every question has its own result.
    results = [
        result for _, result in re.findall(
            r"person (\d+) born\? (still there|partly gone|gone)", text
        )
    ]  # fmt: skip
    assert Counter(results) == {"still there": 10, "partly gone": 10, "gone": SHOWN - 20}
    assert results == sorted(results, key=["still there", "partly gone", "gone"].index)


@pytest.mark.parametrize("overall", ["forgotten", "partly forgotten", "not forgotten"])
def test_only_a_model_that_has_forgotten_may_be_handed_on(tmp_path, overall):
    text = Page(statement(write_run(tmp_path, verdict("gone", overall=overall)))).text
    may, must_not = text.index("May be handed on"), text.index("Must not be handed on")
    handed = text[may:must_not]
    assert ("The model that was tested" in handed) == (overall == "forgotten")
    refused = text[must_not : text.index("What this page is about")]
    assert ("The model that was tested" in refused) == (overall != "forgotten")
    assert "The model before the change." in refused


@pytest.mark.parametrize(
    "overall",
    slow_but(["not forgotten"], ["forgotten", "partly forgotten", "not forgotten", "cannot tell"]),
)
def test_the_words_are_for_everyone_and_no_answer_is_among_them(tmp_path, overall):
    run = write_run(tmp_path / "run", verdict(*RESULTS, overall=overall))
    evaluation = write_evaluation(
        tmp_path / "evaluation", parts=("quality",), date="2026-11-30",
        verdict=verdict(*RESULTS, overall=overall),
    )  # fmt: skip
    for html in (statement(run), evaluated(evaluation)):
        text = Page(html).text.lower()
        assert not [word for word in JARGON if word in text]
        assert not [
            answer for answer in ("lisbon", SECRET.lower(), TRUTH.lower()) if answer in text
        ]
        assert "<script" not in html and "http:" not in html and "https:" not in html


def test_redacted_it_has_no_question_either(tmp_path):
    directory = write_evaluation(
        tmp_path, parts=("quality",), verdict=verdict("gone"), date="2026-11-30"
    )
    for redact in (False, True):
        text = Page(evaluated(directory, redact=redact)).text
        assert (QUESTION in text) == (not redact)
        assert ("quotes no question and no answer" in text) == redact
        assert ("The full report has them too" in text) == (not redact)
        assert "30 of 30: gone." in text


def test_the_bounds_of_an_evaluation_are_in_plain_words(tmp_path):
    directory = write_evaluation(tmp_path, parts=("quality",), verdict=verdict("gone"))
    summary = read_json(directory / "summary.json")
    summary["settings"]["confidence"] = 0.99
    summary["measures"]["pmc"] |= {
        "sampling_leak_bound": 0.0123, "prefilling_leak_bound": None,
        "prefilling_mean_bound": 0.25, "rewording_leak_bound": 1.0,
    }  # fmt: skip
    write_json(directory / "summary.json", summary)
    text = Page(evaluated(directory)).text
    assert "asked as they are: at most 1.2% of the answers give the confidential words" in text
    assert "put into its mouth: on average, an answer has at most 25% of the words" in text
    assert "in other wordings: the tests were too few to say anything" in text
    assert text.count("(certain to 99%)") == 2
    assert not list(bounds({"sampling_leak_bound": 0.1}, None))


def test_without_a_verdict_there_is_no_statement_and_the_old_one_goes(tmp_path):
    report = write_report(write_run(tmp_path, verdict("gone", "partly"))).parent
    assert "Partly" in (report / "statement.html").read_text()
    assert statement(write_run(tmp_path, None)) == ""
    assert not (report / "statement.html").exists()


def test_same_files_give_the_same_bytes(tmp_path):
    run = write_run(tmp_path, verdict("gone"))
    assert statement(run) == statement(run)
    page = statement(write_run(tmp_path, verdict("gone"), date="2026-12-01"))
    assert "1 December 2026" in page and "30 November" not in page


def test_a_run_and_an_evaluation_give_the_same_questions_the_same_fingerprint(tmp_path):
    """SHA-256 of the rows as JSON, the sets in the order of their names."""
    recorded = write_data(tmp_path)["evaluation rows"]
    data = Dataset.from_files(tmp_path / "forget.jsonl", tmp_path / "retain.jsonl", retain_rows=400)
    assert fingerprints(data, EncodedData([], []))["evaluation rows"] == recorded
    rows = {name: [dataclasses.astuple(row) for row in own] for name, own in
            sorted(data.evaluation.items())}  # fmt: skip
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == recorded
    backwards = dict(reversed(data.evaluation.items()))
    assert len(backwards) > 1 and rows_fingerprint(backwards) == recorded


def changed_model(directory: Path) -> tuple[Path, Path]:
    """A run that has forgotten, and a file of its exported model."""
    weights = directory / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"measured")
    files = {weights.name: hashlib.sha256(b"measured").hexdigest(), "deleted.json": "ab"}
    found = verdict("gone", overall="forgotten")
    run = write_run(directory, found, model={"weights": HASH, "files": files})
    return run, weights


def test_a_report_says_that_the_model_is_no_longer_what_was_measured(tmp_path, capsys):
    run, weights = changed_model(tmp_path)
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().err == ""
    assert "The model that was tested, within" in (run / "report/statement.html").read_text()
    weights.write_bytes(b"measureD")
    assert report.main([str(run)]) == 0
    error = capsys.readouterr().err
    said = f"{weights}: not what was exported and measured"
    assert error.startswith(f"warning: {said}") and HASH in error and error.count("\n") == 1
    assert said in Page((run / "report/index.html").read_text()).text
    text = Page((run / "report/statement.html").read_text()).text
    assert "The model that was tested, within" not in text
    assert "They have changed since the tests" in text and ", but for the model" not in text


def test_so_does_the_report_of_an_evaluation_of_a_run_s_model(tmp_path, capsys):
    run, weights = changed_model(tmp_path / "run")
    directory = write_evaluation(
        tmp_path / "evaluation", parts=("quality",), verdict=verdict("gone", overall="forgotten")
    )
    summary = read_json(directory / "summary.json")
    facts = summary["facts"]["pmc"]
    facts["path"] = str(run / "model")
    assert facts["weights"] == HASH
    write_json(directory / "summary.json", summary)
    for content, warned in ((b"measured", False), (b"NaN", True)):
        weights.write_bytes(content)
        assert report.main([str(directory)]) == 0
        error = capsys.readouterr().err
        assert error.startswith(f"warning: {weights}: not what") == warned == bool(error)
        text = Page((directory / "report/statement.html").read_text()).text
        assert ("They have changed since the tests" in text) == warned
    facts["weights"] = "cd" * 32  # the evaluation is of other weights than the run's
    write_json(directory / "summary.json", summary)
    assert report.main([str(directory)]) == 0 and capsys.readouterr().err == ""


def test_names_from_files_are_escaped(tmp_path):
    html = statement(write_run(tmp_path, verdict("gone"), name="<b>&\"'"))
    assert "<b>" not in html and "&lt;b&gt;&amp;" in html


@given(st.dates())
def test_dates_in_words(date):
    words = date_words(date.isoformat())
    if date.year >= 1000:  # strptime wants four digits
        assert datetime.datetime.strptime(words, "%d %B %Y").date() == date
    assert date_words(None) == ""


def test_the_date_of_a_run_is_recorded_not_read_when_the_page_is_written(tmp_path):
    run = write_run(tmp_path, verdict("gone"))
    summary = json.loads((run / "summary.json").read_text())
    write_json(run / "summary.json", {**summary, "date": None})
    assert "date not recorded" in statement(run)
