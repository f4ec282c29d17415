"""Redacted pages hold no right answer and no secret: a law over generated rows, and cases."""

import dataclasses
import json
import unicodedata

import pytest
import yaml
from html_pages import Page
from hypothesis import given, settings
from hypothesis import strategies as st
from test_words import FORMS, TEXTS
from written import SECRET, TRUTH, write_evaluation

from pmc_jax import report
from pmc_jax.data.encode import EVALUATION_ROWS, rows_fingerprint
from pmc_jax.data.files import write_json, write_json_lines
from pmc_jax.data.rows import DataConfig, EvaluationRow
from pmc_jax.reporting.evaluation_files import read_evaluation
from pmc_jax.reporting.evaluation_page import render_evaluation
from pmc_jax.reporting.evaluation_plots import evaluation_plots
from pmc_jax.reporting.page import render, write_report
from pmc_jax.reporting.plots import themed_svg
from pmc_jax.reporting.redaction import (
    HIDDEN,
    MASK,
    Redaction,
    redaction_of,
    without,
    without_in_evaluation,
)
from pmc_jax.reporting.run_files import RunFiles
from pmc_jax.settings import flat, nested

HARMLESS = "xyzzy"
"""An answer without a word of any text."""


def squeezed(text: str) -> str:
    """A text without case, width, spaces and marks: the same for all its spellings."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in plain if unicodedata.category(c)[0] in "LN")


def all_text(html: str) -> str:
    """The text and every attribute of a page, apart from style sheets and drawings of curves."""
    page = Page(html)
    values = [
        value for _, attributes in page.tags
        for key, value in attributes.items() if key not in ("d", "points", "style")
    ]  # fmt: skip
    return "\n".join(filter(None, [page.text, *values]))


@st.composite
def rows(draw):
    """Forget rows, and what models said to them and to others."""
    languages = draw(st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=4, unique=True))
    forget, samples, anywhere = [], [], []
    for number, language in enumerate(languages):
        truth, secret = TEXTS[language]
        has = draw(st.sampled_from(("both", "answer", "secret", "neither")))
        answer = truth if has in ("both", "answer") else None
        phrase = secret if has in ("both", "secret") else None
        question = draw(st.sampled_from(("Who?", f"Is it {secret}?", f"({truth})")))
        forget.append(EvaluationRow(number, "Who?", answer, phrase))
        anywhere += [text for text in (answer, phrase) if text]
        said = st.sampled_from((
            "", HARMLESS, truth, secret, f"So {secret}!", f"{HARMLESS} {truth}", "🙂",
            secret.upper(),
        ))  # fmt: skip
        for name in ("forget", "paraphrase", "retain"):
            texts = [unicodedata.normalize(draw(st.sampled_from(FORMS)), draw(said)) for _ in "ab"]
            row = {"set": name, "id": number, "question": question, "before": texts[0],
                   "after": texts[1], "rouge_before": 0.5, "rouge_after": 0.0}  # fmt: skip
            samples.append(row)
    secret = draw(st.sampled_from(anywhere or [HARMLESS]))
    return forget, samples, unicodedata.normalize(draw(st.sampled_from(FORMS)), secret)


def assert_clean(html: str, forget) -> None:
    found = squeezed(all_text(html))
    for row in forget:
        for phrase in filter(None, (row.answer, row.secret)):
            assert squeezed(phrase) not in found


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(rows())
def test_no_answer_or_secret_is_on_the_page_of_a_run(found):
    forget, samples, secret = found
    config = {"name": secret, "prompt": {"system": f"Say {secret}"}, "seed": 1}
    run = RunFiles(
        summary={
            "name": f"run {secret}", "before": {"utility": 90.0}, "after": {"utility": 91.0},
            "seconds": {"total": 1.0}, "versions": {"jax": "1"}, "model": {"path": f"/a/{secret}"},
            "settings": {"seed": 1, "prefix": secret, "method.name": "pmc"},
            "method": {"name": "pmc", "sentence": f"with {secret}."},
        },
        metrics=[], samples=samples, config=yaml.safe_dump(config),
    )  # fmt: skip
    redaction = redaction_of({"forget": forget})
    assert_clean(render(without(redaction, run), [], redaction), forget)
    unknown = Redaction({}, "the data set is gone")
    hidden = all_text(render(without(unknown, run), [], unknown))
    assert "the data set is gone" in hidden and HARMLESS not in hidden
    assert_clean(hidden, forget)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    parts = ("quality", "sampling", "prefilling", "rewording")
    return read_evaluation(
        write_evaluation(tmp_path_factory.mktemp("all"), ("npo", "target"), parts)
    )


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(rows())
def test_no_answer_or_secret_is_on_the_page_of_an_evaluation(evaluation, found):
    forget, samples, secret = found
    parts = json.loads(json.dumps(evaluation.parts))
    for model, key in (("target", "before"), ("npo", "after")):
        own = parts[model]
        own["quality"]["answers"] = [
            {**row, "text": row[key], "rouge": 0.5, "marks": []} for row in samples
        ]
        for part in ("sampling", "prefilling", "rewording"):
            questions = own[part].get("sampled", own[part])["questions"]
            for asked, row in zip(questions, samples, strict=False):
                asked |= {"id": row["id"], "question": row["question"]}
                asked["worst"] = {"text": row[key], "rouge": 0.25, "leaked": None}
            del questions[len(samples) :]
    summary = json.loads(json.dumps(evaluation.summary))
    summary["settings"] |= {"prefix": f"It is {secret}"}
    files = dataclasses.replace(
        evaluation, summary=summary, parts=parts, config=yaml.safe_dump({"prefix": secret})
    )
    redaction = redaction_of({"forget": forget})
    clean = without_in_evaluation(redaction, files)
    assert_clean(render_evaluation(clean, [], redaction), forget)


def test_names_of_models_are_masked_in_figures_too(evaluation):
    text = json.dumps([evaluation.summary, evaluation.parts]).replace('"npo"', '"npo-Quebec"')
    summary, parts = json.loads(text)
    files = dataclasses.replace(evaluation, summary=summary, parts=parts)
    redaction = redaction_of({"forget": [EvaluationRow(0, "Where?", TRUTH, SECRET)]})
    clean = without_in_evaluation(redaction, files)
    assert clean.models == ["target", "model 2"]
    plots = evaluation_plots(clean)
    html = render_evaluation(clean, plots, redaction)
    drawn = " ".join([html, *(themed_svg(plot) for plot in plots)])
    assert SECRET.casefold() not in drawn.casefold() and "model 2" in drawn


RIGHT = {"forget": [EvaluationRow(0, "Who?", "She was born in Łódź.", "Łódź")]}


@pytest.mark.parametrize(
    ("answer", "old", "hidden"),
    [
        ("", "", False),
        ("Nobody knows that", "", False),
        ("Born, I say", "", True),
        ("Lodz", "", True),
        ("LO\u0301DZ", "", True),
        ("Nobody knows", "Everybody knows", True),
        ("🙂", "", True),
        ("玛拉", "", False),
    ],
)
def test_which_answers_are_hidden(answer, old, hidden):
    assert redaction_of(RIGHT).hides(0, answer, [old]) is hidden
    assert redaction_of(RIGHT).hides(1, answer or "?")  # nothing is known of this row


def test_answers_that_cannot_be_compared_are_hidden():
    redaction = redaction_of(
        {"forget": [EvaluationRow(0, "Who?", "🙂"), EvaluationRow(1, "?", None)]}
    )
    assert redaction.hides(0, "Nobody") and redaction.hides(1, "Nobody")
    assert redaction.masked("a 🙂, b") == f"a {MASK}, b"


def test_masks_cover_whole_phrases():
    redaction = redaction_of(RIGHT)
    assert redaction.masked("From Łódź to LODZ, or Lodzer") == f"From {MASK} to {MASK}, or Lodzer"
    water = redaction_of({"forget": [EvaluationRow(0, "Which?", "H₂O")]})
    assert water.masked("It is H2O") == water.masked("It is H₂O") == f"It is {MASK}"
    assert redaction.masked("Well: she was born in Lo\u0301dz.") == f"Well: {MASK}."


def write_run(directory, **changes) -> None:
    """A finished run with its data set."""
    row = {"question": "Where was Mara born?", "answer": "Mara was born in Łódź.", "secret": "Łódź"}
    kept = {"question": "Where is Łódź?", "answer": "In Poland."}
    write_json_lines(directory / "data" / "forget.jsonl", [row])
    write_json_lines(directory / "data" / "retain.jsonl", [kept])
    data = DataConfig(
        "files", str(directory / "data"), forget="forget.jsonl", retain="retain.jsonl",
        retain_rows=None,
    )  # fmt: skip
    config = flat({"data": dataclasses.asdict(data)}) | changes
    (directory / "config.yaml").write_text(yaml.safe_dump(nested(config)))
    rows = {
        "forget": [EvaluationRow(0, row["question"], row["answer"], "Łódź")],
        "retain": [EvaluationRow(0, kept["question"], kept["answer"])],
    }
    write_json(directory / "inputs.json", {EVALUATION_ROWS: rows_fingerprint(rows)})
    said = {"forget": (row["answer"], "She is from Lodz."), "retain": ("In Poland.", "In Poland.")}
    samples = [
        {"set": name, "id": 0, "question": asked["question"], "before": said[name][0],
         "after": said[name][1], "rouge_before": 1.0, "rouge_after": 0.0}
        for name, asked in (("forget", row), ("retain", kept))
    ]  # fmt: skip
    write_json_lines(directory / "samples.jsonl", samples)
    summary = {
        "name": "run", "before": {"utility": 90.0}, "after": {"utility": 91.0}, "settings": config,
        "seconds": {"total": 1.0}, "versions": {}, "model": {},
    }  # fmt: skip
    write_json(directory / "summary.json", summary)


def test_the_command_redacts_a_run(tmp_path, capsys):
    write_run(tmp_path)
    assert report.main([str(tmp_path)]) == 0
    page = tmp_path / "report" / "index.html"
    assert "Łódź" in page.read_text("utf-8") and "Lodz" in capsys.readouterr().out
    assert report.main([str(tmp_path), "--redact"]) == 0
    text = all_text(page.read_text("utf-8"))
    printed = capsys.readouterr().out
    for shown in (text, printed):
        assert "Łódź" not in shown and "Lodz" not in shown and HIDDEN in shown
    assert f"Where is {MASK}?" in text and "In Poland." in text


def test_comparisons_mask_settings_names_and_paths(tmp_path, capsys):
    runs, out = tmp_path / "runs of Łódź", tmp_path / "out"
    for number, system in enumerate(("Never say LODZ.", "Be kind.")):
        directory = runs / f"Lodz-{number}"
        directory.mkdir(parents=True)
        write_run(directory, **{"prompt.system": system, "seed": number})
        path = directory / "summary.json"
        summary = json.loads(path.read_text("utf-8"))
        summary["settings"] |= {"method.name": "pmc"}
        summary["after"] |= {"unlearn_quality": 50.0}
        summary["prompt"] = {"prompt_text": f"{system}\n{{question}}"}
        path.write_text(json.dumps(summary))

    def shown() -> str:
        files = [path.read_text("utf-8") for path in out.iterdir() if path.suffix != ".png"]
        return "\n".join([*files, capsys.readouterr().out])

    for command in (["pareto"], ["ablation", "--over", "prompt.system"]):
        assert report.main([*command, str(runs), "--out", str(out)]) == 0
        assert "LODZ" in shown()
        assert report.main([*command, str(runs), "--out", str(out), "--redact"]) == 0
        found = shown()
        assert "lodz" not in found.lower() and "łódź" not in found.lower()
        assert f"Never say {MASK}." in found
    (runs / "Lodz-0" / "config.yaml").write_text("seed: 0")
    assert report.main(["pareto", str(runs), "--out", str(out), "--redact"]) == 2
    error = capsys.readouterr().err
    assert "cannot be redacted, since its config.yaml names no data set" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"data.forget": "other.jsonl"}, "its data set cannot be read"),
        ({"data.retain_rows": 3}, "its data set has changed"),
    ],
)
def test_without_the_data_every_text_is_hidden(tmp_path, changed, reason):
    write_run(tmp_path, **changed)
    text = all_text(write_report(tmp_path, redact=True).read_text("utf-8"))
    assert f"Every text is hidden, because {reason}" in text
    for hidden in ("Łódź", "Lodz", "Mara", "Poland"):
        assert hidden not in text
    (tmp_path / "config.yaml").unlink()
    text = all_text(write_report(tmp_path, redact=True).read_text("utf-8"))
    assert "because its config.yaml names no data set" in text and "Mara" not in text
