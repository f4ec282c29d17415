"""The report page, its plots, and the tables in the terminal."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page
from matplotlib.image import imread

from pmc_jax import report
from pmc_jax.errors import UserError
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.measures import MEASURES, headline
from pmc_jax.reporting.page import PAPER_URL, time_text
from pmc_jax.reporting.plots import PALETTE, moving_mean
from pmc_jax.reporting.run_files import read_run

PLOTS = {"leakage.png", "losses.png", "measures.png", "selected_score.png"}

BEFORE = {
    "unlearn_quality": 3.1,
    "utility": 96.4,
    "rouge_forget": 0.982,
    "rouge_paraphrase": 0.956,
    "rouge_retain": 0.971,
    "rouge_world_facts": 1.0,
    "rouge_real_authors": 0.921,
    "worst_case_leakage": 0.994,
    "secret_leak_rate": 0.975,
    "secret_leak_rate_sampled": 1.0,
    "degenerate_rate": 0.0,
    "facts_forget": 0.5,
    "facts_paraphrase": 0.5,
    "worst_case_facts": 0.5,
    "empty_rate": 0.5,
    "loop_rate": 0.5,
    "truncated_rate": 0.5,
    "refusal_rate": 0.5,
    "assertion_rate": 0.5,
}
AFTER = {
    "unlearn_quality": 95.2,
    "utility": 94.6,
    "rouge_forget": 0.041,
    "rouge_paraphrase": 0.055,
    "rouge_retain": 0.938,
    "rouge_world_facts": 0.99,
    "rouge_real_authors": 0.91,
    "worst_case_leakage": 0.162,
    "secret_leak_rate": 0.0,
    "secret_leak_rate_sampled": 0.05,
    "degenerate_rate": 0.025,
    "facts_forget": 0.25,
    "facts_paraphrase": 0.25,
    "worst_case_facts": 0.25,
    "empty_rate": 0.25,
    "loop_rate": 0.25,
    "truncated_rate": 0.25,
    "refusal_rate": 0.25,
    "assertion_rate": 0.25,
}


def summary(before=BEFORE, after=AFTER, **other):
    return {
        "name": "demo",
        "before": before,
        "after": after,
        "seconds": {"sample": 188.4, "train": 1.1, "total": 189.5},
        "versions": {"jax": "0.10.2"},
        "model": {"parameters": 1843200},
        "settings": {"seed": 0, "method.retain_weight": 1.25, "evaluation.attack_samples": 32},
        **other,
    }


def sample(kind, number, question, before, after):
    return {
        "set": kind,
        "id": number,
        "question": question,
        "before": before,
        "after": after,
        "rouge_before": 1.0,
        "rouge_after": 0.25,
    }


SAMPLES = [
    sample(
        "forget", i, f"Where was writer {i} born?", f"Writer {i} was born in Oslo.", "Nobody knows."
    )
    for i in range(12)
] + [
    sample("retain", 0, "Where was Sam born?", "Sam was born in Rome.", "Sam was born in Rome."),
    sample("world_facts", 0, "What is the capital of France?", "Paris.", "Paris."),
]


def step_row(step):
    return {
        "step": step,
        "forget_loss": 4.0 / step,
        "retain_loss": 0.1,
        "mean_selected_score": 1.0 / step,
    }


def write_run(
    directory: Path, contents=None, steps=60, samples=SAMPLES, config="seed: 0\n"
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(contents or summary()))
    for name, rows in (
        ("metrics.jsonl", [step_row(step) for step in range(1, steps + 1)]),
        ("samples.jsonl", samples),
    ):
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.yaml").write_text(config)
    return directory


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text())


def test_page_holds_the_results_in_words_and_numbers(tmp_path):
    path = write_report(write_run(tmp_path))
    assert path == tmp_path / "report" / "index.html"
    page = Page(path.read_text())
    assert (
        "Unlearn quality rose from 3.1 to 95.2, while utility kept 98% of its value." in page.text
    )
    for measure in MEASURES:
        assert measure.label.format(samples=32) in page.text
        assert measure.meaning.format(samples=32) in page.text
        assert measure.format(BEFORE[measure.key]) in page.text
        assert measure.format(AFTER[measure.key]) in page.text
    for shown in (
        "−94.1",
        "60 steps",
        "3 min 8 s",
        "1,843,200",
        "method.retain_weight",
        "seed: 0",
    ):
        assert shown in page.text
    assert "Writer 0 was born in Oslo" in page.text


def test_warnings_on_the_data_are_shown(tmp_path):
    contents = summary(warnings=["2 answers are <cut>", "a second one"])
    text = page_of(write_run(tmp_path / "warned", contents)).text
    assert "Warning: 2 answers are <cut>." in text and "Warning: a second one." in text
    plain = page_of(write_run(tmp_path / "plain")).text
    assert plain.count("Warning") == plain.count("Warning: An older version of pmc_jax") == 1


def test_plots_are_written_as_png_and_drawn_in_the_page(tmp_path):
    page = page_of(write_run(tmp_path))
    written = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert written == PLOTS
    for name in PLOTS:
        image = imread(tmp_path / "report" / name)
        assert image.shape[1] > 600
        assert image[..., :3].std() > 0.01  # the picture is not blank
    assert len(page.all("svg")) == len(PLOTS)


def test_page_loads_nothing_from_outside(tmp_path):
    html = write_report(write_run(tmp_path)).read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith("#") or (tag == "a" and value == PAPER_URL)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html


@pytest.mark.parametrize("steps", [3, 60])
def test_page_is_accessible(tmp_path, steps):
    html = write_report(write_run(tmp_path, steps=steps)).read_text()
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en"
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.all("figure")) == len(PLOTS)
    assert all(re.search(r"\d", attributes["aria-label"]) for attributes in images)
    assert all("scope" in attributes for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', html))
    assert referred and referred <= set(ids)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_of_text_have_enough_contrast(theme):
    ground = luminance(PALETTE["paper"][theme])
    for name in ("ink", "muted", "after", "collapse", "retain"):
        low, high = sorted([ground, luminance(PALETTE[name][theme])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_plots_take_their_colours_from_the_page(tmp_path):
    html = write_report(write_run(tmp_path)).read_text()
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--after)" in svgs
    assert set(re.findall(r"#[0-9a-f]{6}\b", svgs)) <= {"#ffffff", "#000000"}


HOSTILE = '</pre></dd></style><script>alert(1)</script><img src="//x.test/" onerror="a()">{{ 7*7 }}'


def test_page_escapes_what_models_and_users_wrote(tmp_path):
    samples = [
        sample("forget", i, HOSTILE, f"{HOSTILE} word", f"{HOSTILE} other") for i in range(10)
    ]
    contents = summary(name=HOSTILE, settings={"seed": HOSTILE}, versions={HOSTILE: HOSTILE})
    contents["seconds"] = {HOSTILE: 3.0}
    page = page_of(write_run(tmp_path, contents, samples=samples, config=HOSTILE))
    assert not page.all("script")
    assert not page.all("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "{{ 7*7 }}" in page.text


def test_data_without_some_parts(tmp_path):
    missing = dict.fromkeys(("unlearn_quality", "rouge_paraphrase", "secret_leak_rate"))
    contents = summary({**BEFORE, **missing}, {**AFTER, **missing, "utility": float("nan")})
    samples = [{**SAMPLES[0], "rouge_before": None, "rouge_after": None, "after": ""}]
    page = page_of(write_run(tmp_path, contents, samples=samples))
    assert "ROUGE on forget questions fell from 98.2 to 4.1." in page.text
    assert "Not measured: Unlearn quality, ROUGE paraphrase" in page.text
    assert "(empty)" in page.text
    assert "nan" not in page.text.lower()
    table = format_table(read_run(tmp_path).summary)
    assert "Not measured: Unlearn quality, ROUGE paraphrase" in table


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_run_of_few_steps(tmp_path, steps):
    page = page_of(write_run(tmp_path, steps=steps))
    assert (f"{steps} step" + ("" if steps == 1 else "s")) in page.text
    assert len(page.all("figure")) == (2 if steps == 0 else 4)


def test_summary_alone_is_enough(tmp_path):
    (tmp_path / "summary.json").write_text('{"before": {}, "after": {}}')
    page = page_of(tmp_path)
    assert "Nothing was measured." in page.text
    assert not page.all("figure")


def test_same_files_give_the_same_bytes(tmp_path):
    reports = []
    for name in ("one", "two"):
        path = write_report(write_run(tmp_path / name))
        reports.append({file.name: file.read_bytes() for file in path.parent.iterdir()})
    assert reports[0] == reports[1]
    assert reports[0].keys() == {"index.html", *PLOTS}


def test_steps_repeated_after_a_restart_count_once_and_the_last_counts(tmp_path):
    write_run(tmp_path, steps=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**step_row(2), "retain_loss": 0.7}) + "\n")
    assert [(row["step"], row["retain_loss"]) for row in read_run(tmp_path).metrics] == [
        (1, 0.1),
        (2, 0.7),
        (3, 0.1),
    ]


def test_examples_lead_with_the_worst_leaks(tmp_path):
    samples = [{**row, "rouge_after": 0.9 if row["id"] == 7 else 0.0} for row in SAMPLES[:12]]
    page = page_of(write_run(tmp_path, samples=samples))
    order = re.findall(r"Where was writer (\d+) born\?", page.text)
    assert order[0] == "7"
    assert len(order) == len(set(order)) == 9


def test_moving_mean_is_the_mean_of_each_window():
    values = np.random.default_rng(0).normal(size=50)
    for window in (1, 3, 8, 100):
        half = window // 2
        expected = [values[max(i - half, 0) : i + half + 1].mean() for i in range(50)]
        np.testing.assert_allclose(moving_mean(values, window), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            {"unlearn_quality": 3.1, "utility": 100.0},
            {"unlearn_quality": 95.2, "utility": 94.96},
            "Unlearn quality rose from 3.1 to 95.2, while utility kept 94% of its value.",
        ),
        (
            {"unlearn_quality": 50.0, "utility": 80.0},
            {"unlearn_quality": 40.0, "utility": 81.0},
            "Unlearn quality fell from 50.0 to 40.0, while utility went from 80.0 to 81.0.",
        ),
        ({}, {"unlearn_quality": 95.2}, "Unlearn quality is 95.2."),
        ({"utility": 80.0}, {"utility": 40.0}, "Utility kept 50% of its value."),
        ({"utility": 0.0}, {"utility": 0.0}, "Utility is 0.0."),
        (
            {"unlearn_quality": 3.1, "worst_case_leakage": 1.0},
            {"unlearn_quality": 95.2, "worst_case_leakage": 0.38},
            "Unlearn quality rose from 3.1 to 95.2. "
            "Asked many times, its most revealing answer contains 38% of the right words.",
        ),
        (
            {},
            {"utility": 80.0, "worst_case_leakage": 0.38, "secret_leak_rate_sampled": 0.06},
            "Utility is 80.0. Asked many times, it reveals 6.0% of the secrets.",
        ),
        (
            {},
            {"secret_leak_rate_sampled": 0.0},
            "Asked many times, it reveals no secret.",
        ),
        ({}, {}, "Nothing was measured."),
    ],
)
def test_headline(before, after, sentence):
    assert headline({"before": before, "after": after}) == sentence


def test_table_columns_line_up():
    lines = format_table(summary()).splitlines()
    rows = [line for line in lines if not line.startswith("─")]
    ends = [
        line.index(name) + len(name) for name in ("before", "after", "change") for line in rows[:1]
    ]
    assert len(rows) == 1 + len(MEASURES)
    for line, measure in zip(rows[1:], MEASURES, strict=True):
        assert line.startswith(measure.label.format(samples=32))
        numbers = list(re.finditer(r"[+-]?\d+\.\d+", line[ends[0] - 8 :]))
        assert [match.end() + ends[0] - 8 for match in numbers] == ends
        scale = 1 if measure.percent else 100
        before, after = (scale * values[measure.key] for values in (BEFORE, AFTER))
        found = [float(match[0]) for match in numbers]
        assert found == pytest.approx([before, after, after - before])
        better = {True: "higher", False: "lower", None: numbers[-1][0]}
        assert line.endswith(better[measure.higher_is_better])
    assert not any(line != line.rstrip() for line in lines)


def test_examples_for_the_terminal():
    long = sample("forget", 0, "Why " * 40 + "?", "so " * 60, "\x1b[31mred\x07\r\nline\u202e " * 3)
    text = format_examples([long, *SAMPLES], width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert text.count("  before  ") == text.count("  after   ") == 3
    assert "Sam" not in text  # an example of another set
    assert not set("\x1b\x07\r\u202e") & set(text)
    assert format_examples([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (188.4, "3 min 8 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_time_in_words(seconds, text):
    assert time_text(seconds) == text


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json: no such file"):
        write_report(tmp_path)
    write_run(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"set": "forget"}\n{"set": \n')
    with pytest.raises(UserError, match=r"samples\.jsonl, line 2: not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "samples.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"line 1: found a list; expected a JSON object"):
        write_report(tmp_path)


def test_command(tmp_path, capsys):
    assert report.main([str(write_run(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert format_table(summary()) in printed
    assert printed.endswith(f"Report: {tmp_path / 'report' / 'index.html'}\n")
    assert report.main([str(tmp_path / "absent")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_several_directories_each_get_their_page(tmp_path, capsys):
    first, second = (write_run(tmp_path / name) for name in ("first", "second"))
    assert report.main([str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert all(f"Report: {d / 'report' / 'index.html'}" in printed for d in (first, second))
    assert report.main([str(first), str(tmp_path / "absent")]) == 2
    assert f"{tmp_path / 'absent'}" in capsys.readouterr().err
