"""The report of an evaluation: the page, its content, and the command that writes it."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from written import FIGURES, QUESTION, SECRET, write_evaluation

from pmc_jax import report
from pmc_jax.data.files import write_json
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.parts import PARTS
from pmc_jax.evaluation.quality import missing_measures
from pmc_jax.evaluation.summary import summarise_directory
from pmc_jax.reporting import write_evaluation_report
from pmc_jax.reporting.evaluation_files import read_evaluation
from pmc_jax.reporting.evaluation_page import USED_BY, render_evaluation, used
from pmc_jax.reporting.findings import comparisons, evaluation_headline, findings
from pmc_jax.reporting.page import PAPER_URL, SETTING_WORDS
from pmc_jax.reporting.redaction import redacted_evaluation
from pmc_jax.reporting.side_by_side import (
    EVALUATION_MEASURES,
    compared_rows,
    comparison_table,
    time_table,
)
from pmc_jax.reporting.text import LONGEST_NAME, short_names

HOSTILE = '</pre></dd></style><script>alert(1)</script><img src="//x.test/" onerror="a()">$x$'


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    directory = write_evaluation(tmp_path_factory.mktemp("evaluations") / "trial")
    write_evaluation_report(directory)
    return directory


@pytest.fixture(scope="module")
def html(evaluation) -> str:
    return (evaluation / "report" / "index.html").read_text("utf-8")


def page_without_figures(directory: Path, *, redact: bool) -> str:
    files, redaction = read_evaluation(directory), None
    if redact:
        files, redaction = redacted_evaluation(files)
    return render_evaluation(files, [], redaction)


def test_the_page_has_every_number_of_the_table(evaluation, html):
    page = Page(html)
    summary = json.loads((evaluation / "summary.json").read_text())
    rows = compared_rows(summary)
    assert len(rows) > 50
    for measure, values in rows:
        text = f"{measure.label} {measure.arrow}"
        cells = " ".join(measure.format(value).replace("-", "−") for value in values)
        assert text.strip() in page.text and cells in page.text, measure.key
    for words in summary["certificates"]["pmc"].values():
        assert words in page.text
    for sentence in (*findings(summary), *comparisons(summary), evaluation_headline(summary)):
        assert sentence in page.text
    assert "ab" * 32 in page.text and "jax 0.10.2" in page.text
    assert summary["data"]["evaluation rows"] in page.text
    assert "tofu: model utility: the data allows no wf_Q_A_Prob" in page.text
    order = [page.text.index(title) for title in (
        "Findings", "Measures", "Certified bounds", "Figures", "Example answers",
        "How it was measured")]  # fmt: skip
    assert order == sorted(order)


def test_where_chance_is_best_no_arrow_points_past_it(evaluation, html, tmp_path):
    near = {m.key for m in EVALUATION_MEASURES if m.near_chance}
    assert {"least_likely_accuracy", "least_likely_most_likely_accuracy"} < near
    assert all("mia" in key or "likely" in key for key in near)
    assert all(m.higher_is_better is None for m in EVALUATION_MEASURES if m.near_chance)
    page = Page(html)
    assert "≈ near chance is better" in page.text
    for label in (
        "Least likely option is right",
        "Most likely option is right",
        "Membership, loss",
    ):
        assert f"{label} ≈" in page.text
    plain = write_evaluation(tmp_path, ("pmc", "target"), parts=("quality",))
    assert "≈" not in write_evaluation_report(plain).read_text()


def test_long_names_lose_their_middle_in_headings(tmp_path):
    long = "npo-learning_rate-1e-5-beta-0.1-epochs-10-seed-{}-of-three"
    models = ("pmc", "target", long.format(0), long.format(1))
    text = page_without_figures(write_evaluation(tmp_path, models), redact=False)
    headings = [a for a in Page(text).all("th") if "model" in a.get("class", "")]
    assert [a["title"] for a in headings] == ["target", "pmc", long.format(0), long.format(1)]
    short = short_names(models)
    assert short[models[2]] == "npo-learning_…ed-0-of-three"
    pieces = re.findall(r'class="number model" title="[^"]*">(.*?)</th>', text)
    shown = [piece.replace("<wbr>", "") for piece in pieces]
    assert shown == [short[m] for m in ("target", "pmc", *models[2:])]
    assert max(map(len, shown)) <= LONGEST_NAME
    assert f"{short[models[2]]} (" in Page(text).text  # in the section that compares models
    assert max(len(word) for piece in pieces for word in piece.split("<wbr>")) < 14
    summary = json.loads((tmp_path / "summary.json").read_text())
    table = comparison_table(summary).splitlines()
    assert max(map(len, table)) <= 80
    rule = next(i for i, line in enumerate(table) if line.startswith("─"))
    # Columns of numbers end where their headings end; headings take several lines.
    cells = re.finditer(r"\S+", next(line for line in table if line.startswith("Utility")))
    ends = [cell.end() for cell in cells][1:]
    starts = [len("in percent"), *ends]
    headings = [
        "".join(line[start:end].strip() for line in table[:rule])
        for start, end in itertools.pairwise(starts)
    ]
    assert headings == shown


@given(st.lists(st.text("ab", max_size=12), unique=True), st.integers(8, 12))
def test_shortened_names_stay_apart(names, longest):
    short = short_names(names, longest)
    assert list(short) == names and len(set(short.values())) == len(names)
    assert all(len(name) <= longest for name in short.values())


def test_only_settings_that_were_used_are_listed(tmp_path):
    settings = {
        "suite": "x", "evaluation.attack_samples": 5, "prefix": "The", "robustness.examples": 8,
        "robustness.bits": [4], "confidence": 0.99, "seed": 0,
    }  # fmt: skip

    def of(*parts: str) -> set[str]:
        summary = {"seconds": {"pmc": dict.fromkeys(parts, 1.0)}}
        return {key for key in settings if used(key, summary)} - {"suite", "seed"}

    attack = {"evaluation.attack_samples", "confidence"}
    assert of("quality", "tofu") == set()
    assert of("quality", "sampling") == attack
    assert of("quality", "prefilling") == attack | {"prefix"}
    assert of("quality", "relearning") == attack | {"robustness.examples"}
    assert of("quality", "quantisation") == attack | {"robustness.bits"}
    assert set(USED_BY) < SETTING_WORDS.keys() and set().union(*USED_BY.values()) < set(PARTS)
    directory = write_evaluation(tmp_path, parts=("quality", "tofu"), settings=settings)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert [key for key in settings if f" {key} " in text] == ["suite", "seed"]


def test_compiling_is_apart_in_the_times(tmp_path):
    directory = write_evaluation(tmp_path, ("a_b", "target"), parts=("quality",))
    assert "Compilation" not in write_evaluation_report(directory).read_text()
    path = directory / "models/a_b/quality.json"
    write_json(path, {**json.loads(path.read_text()), "seconds": 3.5, "compiling": 3.0})
    summary = json.loads((directory / "summary.json").read_text())
    summary |= summarise_directory(directory / "models", ["a_b", "target"], ["quality"])
    write_json(directory / "summary.json", summary)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert "a_b: quality 0.5 s" in text and "a_b: compiling 3.0 s" in text
    assert "target: quality 1.5 s" in text and "Compilation is counted separately" in text
    lines = [line.split() for line in time_table(summary).splitlines()]
    assert ["a_b", "quality", "0.5", "600"] in lines and ["a_b", "compiling", "3.0"] in lines
    assert ["a_b", "total", "3.5"] in lines


def test_questions_alone_get_no_sentences_about_answers(tmp_path):
    directory = write_evaluation(tmp_path, ("pmc", "target"), parts=("quality",))
    for model in ("pmc", "target"):
        path = directory / "models" / model / "quality.json"
        part = json.loads(path.read_text())
        part["answers"] = [{**row, "rouge": None} for row in part["answers"]]
        part["measures"] = {"utility": 95.0, "rouge_retain": 0.95, "degenerate_rate": 0.0}
        part["missing"] = missing_measures({"forget": [EvaluationRow(0, "Who?", None)]})
        write_json(path, part)
    summary = json.loads((directory / "summary.json").read_text())
    summary |= summarise_directory(directory / "models", ["pmc", "target"], ["quality"])
    write_json(directory / "summary.json", summary)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert "Utility stayed at 95.0." in text
    for claim in (
        "left of the right answer",
        "word of the right answer",
        "paraphrases",
        "secret of",
    ):
        assert claim not in text, claim
    assert "quality: unlearn quality: the data has no answer that should be forgotten" in text
    assert "quality: ROUGE, forget: the data has no answers to these questions" in text


def test_the_page_needs_nothing_but_itself(html):
    page = Page(html)
    for tag in ("script", "link", "iframe", "img", "object", "base", "form"):
        assert not page.all(tag), tag
    addresses = [
        value for tag, attributes in page.tags for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "poster", "action") and tag != "a"
    ]  # fmt: skip
    assert all(address.startswith("#") for address in addresses)
    targets = {attributes["href"] for attributes in page.all("a")}
    inside = {target for target in targets if target.startswith("#")}
    assert targets - inside == {PAPER_URL}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert inside and {target[1:] for target in inside} <= ids
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies and all("default-src 'none'" in policy for policy in policies)


def test_the_page_is_accessible(html):
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en" and page.all("title")
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.all("figure")) == len(page.all("figcaption")) == FIGURES
    assert all(re.search(r"\d", attributes["aria-label"]) for attributes in images)
    assert len({attributes["aria-label"] for attributes in images}) == FIGURES
    assert all("scope" in attributes for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes[key] for _, attributes in page.tags for key in attributes
             if key == "aria-labelledby"}  # fmt: skip
    assert named <= set(ids)
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', html))
    assert referred and referred <= set(ids)
    # Everything that scrolls sideways can be reached with the keyboard.
    assert all("tabindex" in a for _, a in page.tags if a.get("class") == "scroll")


def test_same_files_give_the_same_bytes(evaluation, tmp_path):
    shutil.copytree(evaluation, tmp_path / "trial")
    old = {p.name: p.read_bytes() for p in (evaluation / "report").iterdir()}
    write_evaluation_report(tmp_path / "trial")
    assert {p.name: p.read_bytes() for p in (tmp_path / "trial" / "report").iterdir()} == old


def test_changed_words_are_marked_and_redaction_hides_answers(tmp_path):
    directory = write_evaluation(tmp_path / "trial", ("npo", "target"), parts=("quality",))
    shown = write_evaluation_report(directory).read_text()
    assert "Oslo, <ins>of course</ins>" in shown  # new words
    assert 'Zoltan Dornberg was born in <mark class="secret">Quebec</mark>.' in shown
    assert 'He saw <mark class="secret">Quebec</mark>.' in shown
    for words in ("words of the old answer alone are struck out", "new answer alone are underline"):
        assert words in Page(shown).text
    hidden = write_evaluation_report(directory, redact=True).read_text()
    assert SECRET not in hidden and "was born in" not in hidden and "(hidden)" in hidden
    assert "Oslo, <ins>of course</ins>" in hidden  # answers to be kept are shown
    # Both answers are there and hidden, each with its own ROUGE.
    assert "target · ROUGE 1.00" in hidden and "npo · ROUGE 0.50" in hidden
    summary = json.loads((directory / "summary.json").read_text())
    summary["settings"]["redact"] = True
    write_json(directory / "summary.json", summary)
    assert SECRET not in write_evaluation_report(directory).read_text()
    silent = write_evaluation(tmp_path / "silent", ("pmc", "target"), parts=("quality",))
    text = write_evaluation_report(silent, redact=True).read_text()
    assert SECRET not in text and "I cannot say." in text


def test_the_worst_sampled_answers_are_shown_or_hidden(tmp_path):
    attacks = ("sampling", "prefilling", "rewording")
    directory = write_evaluation(tmp_path, ("npo~", "target"), parts=("quality", *attacks))
    part = directory / "models/npo~/rewording.json"
    content = json.loads(part.read_text())
    for row in content["sampled"]["questions"]:
        row["worst"] = {"text": "Nothing.", "rouge": 0.0, "leaked": False}
    sampled = json.loads((directory / "models/target/sampling.json").read_text())
    write_json(directory / "models/npo~/sampling.json", sampled)
    write_json(part, content)
    shown = page_without_figures(directory, redact=False)
    text = Page(shown).text
    section = text[text.rindex("The most revealing sampled") : text.rindex("How it was measured")]
    order = [section.index(title) for title in (
        "Original questions", "With a forced beginning", "Other wordings",
    )]  # fmt: skip
    assert order == sorted(order)
    worst = sorted(sampled["questions"], key=lambda row: row["worst"]["rouge"], reverse=True)
    assert worst[2]["worst"]["leaked"]
    first = section[: order[1]]
    assert first.count(QUESTION) == 3
    for row in worst[:3]:
        assert (
            f"one of {row['leaks']} answers in 20 with the secret · "
            f"ROUGE {row['worst']['rouge']:.2f} Sampled {row['id']}: Dornberg, Quebec ."
        ) in first
    assert "20 answers to each of 6 questions, the worst of each of the 3 worst" in first
    assert "Each begins with “The”, which does not count." in section[order[1] : order[2]]
    assert "None of 20 answers to each of 6 questions has a word of" in section[order[2] :]
    assert 'Dornberg, <mark class="secret">Quebec</mark>.' in shown
    redacted = page_without_figures(directory, redact=True)
    assert SECRET not in redacted and "Sampled" not in redacted.replace("Sampled answers", "")
    text = Page(redacted).text
    assert text[text.rindex("The most revealing sampled") :].count("(hidden)") == 6


def test_one_model_alone(tmp_path):
    """No answers before and no side effects; `redact` hides all answers."""
    directory = write_evaluation(tmp_path, ("target",))
    page = Page(write_evaluation_report(directory).read_text())
    assert "Compared with" not in page.text and f"born in {SECRET}" in page.text
    assert "needs the model before unlearning" in page.text
    assert "Unlearn quality is 0.0, while utility is 95.0." in page.text
    assert SECRET not in page_without_figures(directory, redact=True)


def test_warnings_on_data_and_prompts_are_shown(tmp_path, html):
    directory = write_evaluation(tmp_path, ("target",))
    path = directory / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["prompts differ"]}))
    assert "Warning: prompts differ." in Page(page_without_figures(directory, redact=False)).text
    assert "Warning:" not in Page(html).text


def test_few_parts(tmp_path):
    directory = write_evaluation(tmp_path, ("pmc", "target"), parts=("quality",))
    page = Page(write_evaluation_report(directory).read_text())
    assert not page.all("figure") and "Figures" not in page.text
    assert "Certified bounds" not in page.text


def test_the_page_escapes_what_models_and_users_wrote(tmp_path):
    directory = write_evaluation(tmp_path, ("pmc", "target"))
    summary = (directory / "summary.json").read_text()
    parts = json.loads((directory / "models/pmc/quality.json").read_text())
    parts["answers"] = [
        {**row, "text": f"{HOSTILE} born", "question": HOSTILE} for row in parts["answers"]
    ]
    name = "a$b_<script>"
    (directory / "models/pmc").rename(directory / "models" / name)
    write_json(directory / "models" / name / "quality.json", parts)
    (directory / "summary.json").write_text(summary.replace('"pmc"', json.dumps(name)))
    (directory / "config.yaml").write_text(HOSTILE)
    text = write_evaluation_report(directory).read_text()
    page = Page(text)
    assert not page.all("script") and not page.all("img")
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.text.count("<script>alert(1)</script>") > 5
    assert name in page.text


@pytest.mark.slow
def test_command(tmp_path, capsys):
    write_evaluation(tmp_path / "trial", parts=("quality", "sampling"))
    assert report.main([str(tmp_path / "trial")]) == 0
    printed = capsys.readouterr().out
    assert "Sampling: worst of 20" in printed and "report/index.html" in printed
    assert SECRET in (tmp_path / "trial/report/index.html").read_text()
    assert report.main([str(tmp_path / "trial"), "--redact"]) == 0
    assert SECRET not in (tmp_path / "trial/report/index.html").read_text()
    capsys.readouterr()
    write_evaluation(tmp_path / "other", parts=("quality",))
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give one of those in it: " in error
    assert f"{tmp_path / 'other'}, {tmp_path / 'trial'}\n" in error
    for i in range(10):
        write_json(tmp_path / f"z{i}" / "summary.json", {})
    assert report.main([str(tmp_path)]) == 2
    assert f"{tmp_path / 'z7'} and 2 more\n" in capsys.readouterr().err
    (tmp_path / "trial/models/pmc/quality.json").write_text("{")
    assert report.main([str(tmp_path / "trial")]) == 2
    assert "quality.json, line 1: not valid JSON" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"summary\.json: no such file"):
        read_evaluation(tmp_path)
    write_json(tmp_path / "trial/summary.json", {"models": ["pmc"], "before": None})
    assert report.main([str(tmp_path / "trial")]) == 2
    assert "not the summary of an evaluation (no name, suite" in capsys.readouterr().err
