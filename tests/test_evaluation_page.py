"""The report of an evaluation: figures, sentences, the page, and how a browser shows it."""

import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.text import Annotation
from scipy.optimize import minimize

from pmc_jax import report
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.choices import least_likely_attack
from pmc_jax.evaluation.comparison import summarise_parts
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.parts import PARTS, SUITES
from pmc_jax.evaluation.quality import Answer, missing_measures
from pmc_jax.files import write_json
from pmc_jax.reporting import write_evaluation_report
from pmc_jax.reporting.evaluation_files import EvaluationFiles, read_evaluation
from pmc_jax.reporting.evaluation_page import USED_BY, used
from pmc_jax.reporting.evaluation_plots import evaluation_plots
from pmc_jax.reporting.findings import comparisons, evaluation_headline, findings
from pmc_jax.reporting.measures import percent
from pmc_jax.reporting.model_lines import apart, model_looks
from pmc_jax.reporting.page import PAPER_URL, SETTING_WORDS
from pmc_jax.reporting.side_by_side import (
    EVALUATION_MEASURES,
    compared_rows,
    comparison_table,
    time_lines,
)
from pmc_jax.reporting.text import LONGEST_NAME, short_names

MODELS = ("pmc", "target", "npo")
SAMPLES, QUESTIONS = 20, 6
TRUTH, SECRET = "Zoltan Dornberg was born in Quebec.", "Quebec"
HOSTILE = '</pre></dd></style><script>alert(1)</script><img src="//x.test/" onerror="a()">$x$'


def attack(rng: np.random.Generator, share: float) -> dict:
    answers = [
        [
            Answer("forget", question, "Where?", "…", float(value), bool(value > 0.9))
            for value in rng.random(SAMPLES) * share
        ]
        for question in range(QUESTIONS)
    ]
    return leakage(answers, 0.99)


def again(rng: np.random.Generator, share: float) -> dict:
    sampled = attack(rng, share)
    del sampled["questions"]
    return {"measures": {"unlearn_quality": 70.0, "utility": 90.0}, "sampling": sampled}


def said(model: str) -> list[dict]:
    """Answers: the target tells all, npo some of it, pmc nothing."""
    texts = {"target": (TRUTH, 1.0), "npo": ("He saw Quebec.", 0.5), "pmc": ("I cannot say.", 0.0)}
    text, rouge = texts.get(model, ("Nothing.", 0.0))
    question = "Where was Zoltan Dornberg born?"
    rows = [
        {"set": name, "id": i, "question": question, "text": text, "rouge": rouge}
        for name in ("forget", "paraphrase") for i in range(8)
    ]  # fmt: skip
    text = "Oslo" if model == "target" else "Oslo, of course"
    kept = {"set": "retain", "id": 0, "question": "Norway?", "text": text, "rouge": 1}
    return [*rows, kept]


def model_parts(model: str, share: float, seed: int) -> dict[str, dict]:
    """Files of one model as the parts leave them, with numbers drawn at random."""
    rng = np.random.default_rng(seed)
    greedy = greedy_leakage([Answer("forget", 0, "Where?", "…", share, share > 0.5)])
    point = {"mean": share, "secret_rate": share}
    curve = [
        {"steps": steps, "untaught": {"mean": 0.0, "secret_rate": share * steps / 4},
         "taught": point, "probability": 0.5}
        for steps in (0, 1, 2, 4)
    ]  # fmt: skip
    before = np.random.default_rng(0).random(500)
    measures = {
        "unlearn_quality": 100 * (1 - share), "utility": 95.0, "rouge_forget": share,
        "rouge_retain": 0.95, "secret_leak_rate": share, "degenerate_rate": 0.0,
    }  # fmt: skip
    return {
        "quality": {"measures": measures, "answers": said(model)},
        "sampling": attack(rng, share),
        "prefilling": {"prefix": "The", "greedy": greedy, "sampled": attack(rng, share)},
        "rewording": {"wordings": 6, "greedy": greedy, "sampled": attack(rng, share)},
        "least_likely": least_likely_attack(list(rng.dirichlet(np.ones(4), QUESTIONS))),
        "side_effects": {
            "text": "abc", "watched": list(range(0, 500, 3)),
            "probabilities": np.clip(before + (share - 1) * rng.normal(0, 0.1, 500), 0, 1).tolist(),
        },
        "tofu": {
            "summary": {"forget_quality": 0.2, "privleak": -12.5, "mia_min_k": 0.75,
                        "mia_loss": 0.5, "exact_memorization": share},
            "missing": {"model utility": "the data allows no wf_Q_A_Prob"},
        },
        "relearning": {
            kind: {"rows": [0, 1], "curve": curve, "after": again(rng, share)}
            for kind in ("forget", "benign")
        },
        "rounding": {bits: again(rng, share) for bits in ("8", "4")},
    }  # fmt: skip


def write_evaluation(directory: Path, models=MODELS, parts=SUITES["full"], **changes) -> Path:
    """A finished evaluation; the first model is examined, the second was before unlearning."""
    for seed, model in enumerate(models):
        share = {"target": 1.0, "npo": 0.9}.get(model, 0.3)
        found = model_parts(model, share, seed)
        for name in parts:
            content = {**found[name], "seconds": 1.5, "tokens": 300}
            write_json(directory / "models" / model / f"{name}.json", content)
        write_json(
            directory / "models" / model / "model.json", {"path": model, "weights": "ab" * 32}
        )
    summary = {
        "name": "trial", "suite": "full",
        **summarise_parts(directory / "models", list(models), parts),
        "data": {"evaluation rows": "cd" * 32}, "versions": {"jax": "0.10.2"},
        "settings": {"suite": "full", "evaluation.attack_samples": SAMPLES, "redact": False},
        **changes,
    }  # fmt: skip
    write_json(directory / "summary.json", summary)
    (directory / "config.yaml").write_text("suite: full\n")
    return directory


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    directory = write_evaluation(tmp_path_factory.mktemp("evaluations") / "trial")
    write_evaluation_report(directory)
    return directory


@pytest.fixture(scope="module")
def html(evaluation) -> str:
    return (evaluation / "report" / "index.html").read_text("utf-8")


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
    assert "ab" * 32 in page.text and "cd" * 32 in page.text and "jax 0.10.2" in page.text
    assert "tofu: model utility: the data allows no wf_Q_A_Prob" in page.text
    order = [page.text.index(title) for title in (
        "What was found", "All models side by side", "What is certain", "In pictures",
        "What it says", "How it was measured")]  # fmt: skip
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
    text = write_evaluation_report(write_evaluation(tmp_path, models)).read_text()
    headings = [a for a in Page(text).all("th") if "model" in a.get("class", "")]
    assert [a["title"] for a in headings] == ["target", "pmc", long.format(0), long.format(1)]
    short = short_names(models)
    assert short[models[2]] == "npo-learning_…ed-0-of-three"
    pieces = re.findall(r'class="number model" title="[^"]*">(.*?)</th>', text)
    shown = [piece.replace("<wbr>", "") for piece in pieces]
    assert shown == [short[m] for m in ("target", "pmc", *models[2:])]
    assert max(map(len, shown)) <= LONGEST_NAME
    assert max(len(word) for piece in pieces for word in piece.split("<wbr>")) < 14
    summary = json.loads((tmp_path / "summary.json").read_text())
    heading = comparison_table(summary).splitlines()[0]
    assert heading.split() == shown


@given(st.lists(st.text("ab", max_size=12), unique=True), st.integers(8, 12))
def test_shortened_names_stay_apart(names, longest):
    short = short_names(names, longest)
    assert list(short) == names and len(set(short.values())) == len(names)
    assert all(len(name) <= longest for name in short.values())


def test_only_settings_that_were_used_are_listed(tmp_path):
    settings = {
        "suite": "x", "evaluation.attack_samples": 5, "prefix": "The", "aftermath.rows": 8,
        "aftermath.bits": [4], "confidence": 0.99, "seed": 0,
    }  # fmt: skip

    def of(*parts: str) -> set[str]:
        summary = {"seconds": {"pmc": dict.fromkeys(parts, 1.0)}}
        return {key for key in settings if used(key, summary)} - {"suite", "seed"}

    attack = {"evaluation.attack_samples", "confidence"}
    assert of("quality", "tofu") == set()
    assert of("quality", "sampling") == attack
    assert of("quality", "prefilling") == attack | {"prefix"}
    assert of("quality", "relearning") == attack | {"aftermath.rows"}
    assert of("quality", "rounding") == attack | {"aftermath.bits"}
    assert set(USED_BY) < SETTING_WORDS.keys() and set().union(*USED_BY.values()) < set(PARTS)
    directory = write_evaluation(tmp_path, parts=("quality", "tofu"), settings=settings)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert [key for key in settings if f" {key} " in text] == ["suite", "seed"]


def test_compiling_is_apart_in_the_times(tmp_path):
    directory = write_evaluation(tmp_path, ("a_b", "target"), parts=("quality",))
    assert "Compiling" not in write_evaluation_report(directory).read_text()
    path = directory / "models/a_b/quality.json"
    write_json(path, {**json.loads(path.read_text()), "seconds": 3.5, "compiling": 3.0})
    summary = json.loads((directory / "summary.json").read_text())
    summary |= summarise_parts(directory / "models", ["a_b", "target"], ["quality"])
    write_json(directory / "summary.json", summary)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert "a_b: quality 0.5 s" in text and "a_b: compiling 3.0 s" in text
    assert "target: quality 1.5 s" in text and "Compiling is counted apart" in text
    lines = time_lines(summary)
    assert lines[1] == "Time, a_b: 4 s: quality 0 s (600 tokens/s), compiling 3 s."


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
    summary |= summarise_parts(directory / "models", ["pmc", "target"], ["quality"])
    write_json(directory / "summary.json", summary)
    text = Page(write_evaluation_report(directory).read_text()).text
    assert "Utility stayed at 95.0." in text
    for claim in ("most left of the right answer", "three", "paraphrases", "secret of"):
        assert claim not in text, claim
    assert "quality: unlearn quality: no answer is known that should be forgotten" in text
    assert "quality: ROUGE, forget: the data has no answers to these questions" in text


def test_the_headline_names_the_worst_attack():
    def sentence(**measures: float) -> str:
        summary = {"models": ["a"], "before": None, "measures": {"a": measures},
                   "settings": {"evaluation.attack_samples": 100}}  # fmt: skip
        return evaluation_headline(summary)

    greedy = {"unlearn_quality": 99.0, "utility": 90.0}
    start = "Unlearn quality is 99.0, while utility is 90.0."
    assert sentence(**greedy) == start
    worst = sentence(**greedy, sampling_secret_worst=0.31, prefilling_secret_worst=0.81,
                     rewording_worst=0.9)  # fmt: skip
    assert worst == f"{start} At the worst, 81% of the secrets come out in 100 answers."
    assert sentence(**greedy, sampling_secret_worst=0.0).endswith(
        "No secret comes out in 100 answers to a question."
    )
    worst = sentence(sampling_worst=0.25, prefilling_worst=0.5)
    assert worst == "At the worst, one of 100 answers holds 50% of the right words."
    assert sentence() == "Nothing was measured."


def test_the_examined_model_is_held_against_the_others():
    measures = {
        "a": {"unlearn_quality": 95.0, "utility": 90.0, "sampling_secret_worst": 0.3,
              "prefilling_worst": 0.4, "relearning_forget_greedy": 0.5},
        "b": {"unlearn_quality": 5.0, "utility": 97.0, "sampling_secret_worst": 1.0},
        "c": {"unlearn_quality": 99.0, "utility": 90.0, "sampling_secret_worst": 0.5},
        "d": {"unlearn_quality": 80.0, "utility": 40.0, "prefilling_worst": 0.1},
    }  # fmt: skip
    summary = {"models": ["a", "b", "c", "d"], "before": "b", "measures": measures,
               "settings": {"evaluation.attack_samples": 100}}  # fmt: skip
    assert list(comparisons(summary)) == [
        "Unlearn quality (5.0 → 95.0): ahead of d (80.0); behind c (99.0).",
        "Utility (97.0 → 90.0): ahead of d (40.0); level with c (90.0).",
        "Questions whose secret is told when asked 100 times (100% → 30%): ahead of c (50%).",
        "Most of an answer when asked 100 times with the beginning of the answer given (40%): "
        "behind d (10%).",
    ]  # fmt: skip
    assert not list(comparisons({**summary, "models": ["a", "b"]}))


def test_labels_at_the_ends_move_as_little_as_they_can():
    """Least squares with gaps, against scipy's general solver."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 5):
        for values in np.sort(rng.random((5, count)) * 0.3):
            gaps = [{"type": "ineq", "fun": lambda y, i=i: y[i + 1] - y[i] - 0.1}
                    for i in range(count - 1)]  # fmt: skip
            best = minimize(lambda y, v=values: ((y - v) ** 2).sum(), values, constraints=gaps).x
            np.testing.assert_allclose(apart(values, 0.1), best, atol=1e-5)
    assert not len(apart(np.zeros(0), 0.1))


def test_axes_and_the_chance_line_are_named(evaluation):
    for plot in evaluation_plots(read_evaluation(evaluation)):
        axes = plot.figure.axes[0]
        assert axes.get_ylabel() and axes.get_xlabel(), plot.name
        names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
        assert ("chance, 0.25" in names) == (plot.name == "least_likely_quantiles")
        # Each value at an end is tied to the end of a curve with that value.
        for note in (child for child in axes.get_children() if isinstance(child, Annotation)):
            ends = [line.get_ydata()[-1] for line in axes.lines]
            assert any(note.xy[1] == end and note.get_text() == f"{end:.2f}" for end in ends)


def test_the_page_needs_nothing_but_itself(html):
    page = Page(html)
    for tag in ("script", "link", "iframe", "img", "object", "base", "form"):
        assert not page.all(tag), tag
    addresses = [
        value for tag, attributes in page.tags for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "poster", "action") and tag != "a"
    ]  # fmt: skip
    assert all(address.startswith("#") for address in addresses)
    assert {attributes["href"] for attributes in page.all("a")} == {PAPER_URL}
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies and all("default-src 'none'" in policy for policy in policies)


def test_the_page_is_accessible(html):
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en" and page.all("title")
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.all("figure")) == len(page.all("figcaption")) == 11
    assert all(re.search(r"\d", attributes["aria-label"]) for attributes in images)
    assert len({attributes["aria-label"] for attributes in images}) == 11
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
    # What scrolls sideways can be reached with the keyboard.
    assert all("tabindex" in a for _, a in page.tags if a.get("class") == "scroll")


def test_figures_show_the_parts_numbers(evaluation):
    files = read_evaluation(evaluation)
    plots = {plot.name: plot for plot in evaluation_plots(files)}

    def drawn(name: str) -> list[tuple[list[float], list[float]]]:
        lines = plots[name].figure.axes[0].lines
        return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]

    assert files.models == ["target", "pmc", "npo"]
    for name, key in (("sampling", "curve"), ("sampling", "secret_curve")):
        for model, (x, y) in zip(files.models, drawn(f"{name}_{key}"), strict=True):
            assert x == list(range(1, SAMPLES + 1)) and y == files.parts[model][name][key]
    for model, (x, y) in zip(files.models, drawn("relearning_forget"), strict=True):
        curve = files.parts[model]["relearning"]["forget"]["curve"]
        assert x == [0, 1, 2, 4] and y == [point["untaught"]["secret_rate"] for point in curve]
    chance, *quantiles = drawn("least_likely_quantiles")
    assert chance[1] == [0.25, 0.25]
    for model, (x, y) in zip(files.models, quantiles, strict=True):
        rows = files.parts[model]["least_likely"]["quantiles"]
        assert (x, y) == ([r["quantile"] for r in rows], [r["accuracy"] for r in rows])
    for model, (x, y) in zip(files.models, drawn("least_likely_minima"), strict=True):
        minima = files.parts[model]["least_likely"]["minima"]
        expected = [sum(m <= value for m in minima) / len(minima) for value in x]
        assert x == sorted(minima) and y == pytest.approx(expected)
    for model, (_, y) in zip(("pmc", "npo"), drawn("side_effects"), strict=True):
        counts = files.summary["side_effects"][model]["watched"]["histogram"]
        np.testing.assert_allclose(np.array(y) * sum(counts), np.maximum(counts, 0.1))


def test_models_differ_by_more_than_colour():
    models = [f"m{i}" for i in range(12)]
    looks = model_looks(EvaluationFiles({"models": models, "before": "m1"}, {}, ""))
    assert len({(str(look.dash), look.marker) for look in looks.values()}) == len(models)
    assert len({look.colour for look in looks.values()}) > 4
    assert looks["m1"].colour == "muted"  # before unlearning
    assert looks["m0"].colour == "after"


def test_figures_are_files_for_print_too(evaluation):
    report_files = sorted(path.name for path in (evaluation / "report").iterdir())
    stems = {name.rpartition(".")[0] for name in report_files} - {"index"}
    assert len(stems) == 11
    for stem in stems:
        assert imread(evaluation / "report" / f"{stem}.png").std() > 0.01
        root = ElementTree.parse(evaluation / "report" / f"{stem}.svg").getroot()
        assert root.tag.endswith("svg")


def test_same_files_give_the_same_bytes(evaluation, tmp_path):
    shutil.copytree(evaluation, tmp_path / "trial")
    old = {p.name: p.read_bytes() for p in (evaluation / "report").iterdir()}
    write_evaluation_report(tmp_path / "trial")
    assert {p.name: p.read_bytes() for p in (tmp_path / "trial" / "report").iterdir()} == old


def test_shared_words_are_marked_and_redaction_hides_them(tmp_path):
    directory = write_evaluation(tmp_path / "trial", ("npo", "target"), parts=("quality",))
    shown = write_evaluation_report(directory).read_text()
    assert "Oslo, <mark>of course</mark>" in shown  # words that are new
    assert "<mark>Quebec</mark>" in shown and "Zoltan Dornberg was born in Quebec." in shown
    hidden = write_evaluation_report(directory, redact=True).read_text()
    assert SECRET not in hidden and "was born in" not in hidden and "(hidden)" in hidden
    assert "Oslo, <mark>of course</mark>" in hidden  # what it should keep is shown
    summary = json.loads((directory / "summary.json").read_text())
    summary["settings"]["redact"] = True
    write_json(directory / "summary.json", summary)
    assert SECRET not in write_evaluation_report(directory).read_text()
    silent = write_evaluation(tmp_path / "silent", ("pmc", "target"), parts=("quality",))
    text = write_evaluation_report(silent, redact=True).read_text()
    assert SECRET not in text and "I cannot say." in text


def test_one_model_alone(tmp_path):
    """No answers before, no side effects, nothing to mark; redacted, nothing of it is left."""
    directory = write_evaluation(tmp_path, ("target",))
    page = Page(write_evaluation_report(directory).read_text())
    assert "held against" not in page.text and not page.all("mark") and TRUTH in page.text
    assert "needs the model before unlearning" in page.text
    assert "Unlearn quality is 0.0, while utility is 95.0." in page.text
    assert SECRET not in write_evaluation_report(directory, redact=True).read_text()


def test_few_parts(tmp_path):
    directory = write_evaluation(tmp_path, ("pmc", "target"), parts=("quality",))
    page = Page(write_evaluation_report(directory).read_text())
    assert not page.all("figure") and "In pictures" not in page.text
    assert "What is certain" not in page.text


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


def test_sentences_say_what_was_measured():
    measures = {
        "secret_leak_rate": 0.031, "degenerate_rate": 0.5, "sampling_secret_worst": 0.3125,
        "prefilling_worst": 0.5, "least_likely_chance": 0.2, "least_likely_accuracy": 0.0,
        "least_likely_most_likely_accuracy": 1.0, "relearning_forget_secret_rate": 0.46,
        "relearning_benign_greedy": 0.25, "rounding_4_secret_worst": 0.5, "rounding_8_worst": 0.4,
        "side_effects_watched_mean_absolute": 0.0214, "tofu_forget_quality": 1e-7,
        "tofu_mia_min_k": 0.5, "tofu_mia_min_k_plus_plus": 0.62, "utility": 98.0,
        "tofu_exact_memorization": 0.87, "tofu_extraction_strength": 0.76,
        "tofu_model_utility": 0.6,
    }  # fmt: skip
    summary = {
        "models": ["a", "b"], "before": "b", "settings": {"evaluation.attack_samples": 100},
        "measures": {"a": measures, "b": {**measures, "secret_leak_rate": 1.0}},
    }  # fmt: skip
    found = findings(summary)
    assert len(found) == 16
    text = " ".join(found)
    for piece in (
        "secret of 3.1% of the questions (before: 100%)",
        "50% of its answers to forget questions are empty or one word repeated.",
        "questions it should still know hold 98.0% of the right words (before: 98.0%).",
        "Asked 100 times, it tells the secret of 31% of the questions at least once (before: 31%).",
        "most revealing answer holds 50% of the right answer's words",
        "most likely for 100% of the questions (before: 100%) and the least likely for 0% (before: "
        "0%); guessing finds 20%.",
        "Trained again on a few rows to forget, it gives away 46% of the secrets of the forget",
        "Trained again on a few rows to keep, it gives away 25% of the words of the right answers",
        "With weights rounded to 8 bits and asked 100 times, it gives 40% of the right words",
        "With weights rounded to 4 bits and asked 100 times, it tells the secret of 50%",
        "changed by 2.1 percentage points on average",
        "differ from those of a model that never saw them (TOFU's forget quality: p = 1e-07)",
        "would have written 87% of its tokens itself (before: 87%); this is exact memorisation.",
        "completes the last 76% of the right answer without a mistake (before: 76%); this is "
        "extraction strength.",
        "answer never taught: 50% by min-k (before: 50%) and 62% by min-k++ (before: 62%). At 50%",
        "TOFU's model utility, a mean over what it should still know, is 60% (before: 60%).",
    ):
        assert piece in text, piece
    alone = findings({**summary, "models": ["a"], "before": None})
    assert not any("before" in sentence for sentence in alone)
    assert findings({**summary, "measures": {"a": {}, "b": {}}}) == []


SHARES = {
    0.0: "0%", 0.0001: "under 0.1%", 0.004: "0.4%", 0.0949: "9.5%", 0.0951: "10%", 0.5: "50%",
    0.999: "99.9%", 0.9999: "over 99.9%", 1.0: "100%",
}  # fmt: skip


@pytest.mark.parametrize("share", SHARES)
def test_shares_in_words(share):
    assert percent(share) == SHARES[share]


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
    assert error.count("\n") == 1 and "but holds 2; give one of them: " in error
    assert f"{tmp_path / 'other'}, {tmp_path / 'trial'}" in error
    (tmp_path / "trial/models/pmc/quality.json").write_text("{")
    assert report.main([str(tmp_path / "trial")]) == 2
    assert "quality.json: not JSON" in capsys.readouterr().err
    with pytest.raises(UserError, match="is missing"):
        read_evaluation(tmp_path)
    write_json(tmp_path / "trial/summary.json", {"models": ["pmc"], "before": None})
    assert report.main([str(tmp_path / "trial")]) == 2
    assert "not the summary of an evaluation (no name, suite" in capsys.readouterr().err


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
MEASURING = """<!doctype html><iframe id="page" width="{width}" height="4000" src="{page}"></iframe>
<script>
const box = element => element && [...["x", "y", "width", "height"].map(
  side => element.getBoundingClientRect()[side]), element.scrollWidth];
window.onload = () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const figures = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
  document.title = JSON.stringify({{
    width: root.scrollWidth, room: root.clientWidth,
    table: box(page.querySelector(".scroll")), frame: box(document.getElementById("page")),
    figures: figures.map(box => [box.width, box.height]),
    words: Math.min(...[...page.querySelectorAll("p, li, td, small, dd")].map(
      element => parseFloat(page.defaultView.getComputedStyle(element).fontSize))),
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to ask")


def browser(page: Path, width: int, scheme: str, tmp_path: Path) -> dict:
    """What `MEASURING` finds in a page, and the pixels of its screenshot from 0 to 1."""
    measuring, picture = tmp_path / "measure.html", tmp_path / "page.png"
    measuring.write_text(MEASURING.format(page=page.as_uri(), width=width))
    preferred = {"dark": 0, "light": 1}[scheme]
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        f"--blink-settings=preferredColorScheme={preferred}", "--virtual-time-budget=5000",
        "--dump-dom", f"--screenshot={picture}", f"--window-size={width + 100},2000",
        measuring.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(re.search(r"<title>(.*?)</title>", shown)[1]) | {"pixels": imread(picture)}


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_whole(evaluation, tmp_path, width, scheme):
    """Nothing sticks out sideways, every figure has its size, and the ground follows the scheme."""
    found = browser(evaluation / "report/index.html", width, scheme, tmp_path)
    assert found["width"] <= found["room"]
    assert len(found["figures"]) == 11
    assert all(w > 250 and h > 120 for w, h in found["figures"])
    assert found["words"] >= 12
    colours = {"light": "rgb(253, 252, 249)", "dark": "rgb(21, 24, 28)"}
    assert found["ground"] == colours[scheme]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_scrolls_is_shaded_where_more_lies(tmp_path, scheme):
    models = ("pmc", "target", "npo", "simnpo", "retain_only")
    directory = write_evaluation(tmp_path / "many", models, parts=("quality",))
    page = write_evaluation_report(directory)

    def edge(width: int) -> tuple[bool, float]:
        """Whether the table scrolls, and how far the ground's brightness is from its edge's."""
        found = browser(page, width, scheme, tmp_path)
        (x, y, breadth, height, whole), (left, top, *_) = found["table"], found["frame"]
        right, first = round(left + x + breadth), round(top + y)
        rows = found["pixels"][first : first + round(height), right - 3 : right - 1, :3]
        ground = found["pixels"][first, round(left) + 3, :3]
        return whole > breadth, float(np.median(abs(rows - ground).mean(axis=(1, 2))))

    assert edge(1200) == (False, 0.0)
    scrolls, shade = edge(390)
    assert scrolls and shade > 0.1
