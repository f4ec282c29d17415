"""Progress: something always moves, rates and times can be read, and a run keeps a log."""

import logging
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from conftest import TEXTS

from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import Stopped, UserError
from pmc_jax.runtime import progress
from pmc_jax.runtime.compilation import COMPILATION_BEGINS, COMPILATION_ENDS, seconds_compiling
from pmc_jax.runtime.progress import (
    Work,
    activity,
    decoded,
    duration_text,
    logged_to,
    say,
    speed_text,
    stage,
    token_stage,
)
from pmc_jax.training.loop import Estimate, StepRecord


@pytest.fixture
def quick(monkeypatch):
    """A stage that is silent for a tenth of a second prints a line."""
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.05)


def test_a_stage_without_updates_keeps_printing(quick, capsys):
    with stage("evaluating", 40):
        time.sleep(0.7)
        decoded(120, 3)
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 10
    assert re.fullmatch(r"evaluating: 0/40 \(0 s\)", lines[0])
    assert re.fullmatch(
        r"evaluating: 0/40 \(1 s\)  120 tokens decoded, \d+ tokens/s", lines[-1]
    )  # fmt: skip
    time.sleep(0.3)
    assert not capsys.readouterr().out  # the stage has ended


def test_what_cannot_be_counted_is_timed(quick, capsys):
    with activity("loading the model"):
        time.sleep(0.3)
    assert capsys.readouterr().out.splitlines()[0] == "loading the model: (0 s)"
    with activity("loading the model"):
        pass
    assert not capsys.readouterr().out  # what is done at once is not worth a line


def test_silence_counts_over_stages(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.05)
    say("the beginning")
    for name in ("exporting", "evaluating"):
        with activity(name):
            time.sleep(0.3)
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_answers_of_a_batch_count_before_it_is_complete(quick, capsys):
    with token_stage("evaluating", 40) as on_batch:
        on_batch(10, 500)
        decoded(80, 6)
        time.sleep(0.4)
        told = capsys.readouterr().out.splitlines()
        assert re.match(r"evaluating: 16/40 \(0 s, \d s left\)  80 tokens decoded, ", told[-1])
        on_batch(30, 900)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"evaluating: 40/40 \(0 s\)  [\d,]+ tokens/s", last)


def test_a_compilation_is_shown_with_its_time(quick, capsys, monkeypatch):
    monkeypatch.setattr(progress, "COMPILING_SECONDS", 0.0)
    with stage("training", 3):
        seconds_compiling()
        jax.monitoring.record_event(COMPILATION_BEGINS)
        time.sleep(0.4)
        during = capsys.readouterr().out.splitlines()
        jax.monitoring.record_event_duration_secs(COMPILATION_ENDS, 0.4)
        time.sleep(0.3)
        after = capsys.readouterr().out.splitlines()
    assert during[-1] == "training: 0/3 (0 s)  compiling, 0 s"
    assert "compiling" not in after[-1]


def test_jax_tells_when_it_compiles():
    """The events that `seconds_compiling` reads, from a real compilation."""
    seen, ended = [], threading.Event()

    def watch():
        while not ended.wait(0.001):
            seen.append(seconds_compiling())

    assert seconds_compiling() is None
    watcher = threading.Thread(target=watch)
    watcher.start()
    jax.jit(lambda x: jnp.linalg.svd(jnp.sin(x @ x))[1].sum() * 1.234)(jnp.ones((7, 7)))
    ended.set()
    watcher.join()
    assert any(seconds is not None and seconds >= 0 for seconds in seen)
    assert seconds_compiling() is None


def test_decoding_counts_its_tokens(tiny_model):
    """The counters against the responses themselves."""
    template = tiny_model.template
    batches, before = [], Work.tokens
    responses = generate(
        tiny_model.for_decoding().params, [template.encode_prompt(text) for text in TEXTS],
        cfg=tiny_model.config, sampling=Sampling(1.0, stop_ids=template.stop_ids),
        key=jax.random.key(0), limits=[12] * len(TEXTS), samples=3, decode_batch=6,
        on_batch=lambda answers, tokens: batches.append((answers, tokens, Work.answers)),
    )  # fmt: skip
    lengths = [len(tokens) for own in responses for tokens in own]
    assert Work.tokens - before == sum(lengths) == sum(tokens for _, tokens, _ in batches)
    assert [(answers, complete) for answers, _, complete in batches] == [(6, 6)] * 2


def test_rates_and_durations_say_something():
    assert [speed_text(n, s) for n, s in ((123456, 10), (100, 10), (3, 10), (1, 400))] == [
        "12,346 tokens/s", "10 tokens/s", "0.3 tokens/s", "0.0025 tokens/s",
    ]  # fmt: skip
    assert [duration_text(s) for s in (0.4, 42, 89.4, 400, 5400, 12345)] == [
        "0 s", "42 s", "89 s", "7 min", "1 h 30 min", "3 h 26 min",
    ]  # fmt: skip


def record(step: int, **seconds: float) -> StepRecord:
    total = sum(seconds.values())
    return StepRecord(
        step, 0, [], 1.0, None, None, 1.0, None, 10, {}, {**seconds, "total": total}
    )  # fmt: skip


def test_a_run_is_estimated_from_its_second_step():
    first, second = record(0, sample=60, train=30), record(1, sample=8, train=2)
    assert Estimate(100, 90.0).of([first, second]) == (
        "about 18 min left: 98 steps of 10.0 s, and 2 min for the evaluation; lower method.samples "
        "or method.max_new_tokens to shorten it"
    )
    assert Estimate(10, 3600.0).of([first, record(1, train=4)]) == (
        "about 61 min left: 8 steps of 4.0 s, and 60 min for the evaluation; lower "
        "evaluation.attack_samples, or evaluation=quick to shorten it"
    )
    assert Estimate(10, 0.0).of([first, record(1, train=4)]) is None  # it is over soon


def test_what_is_said_is_logged(tmp_path, capsys):
    path = tmp_path / "log.txt"
    say("Prompt: plain")
    with logged_to(path), stage("training", 2) as shown:
        shown.say("two lines\nof text")
        shown.update(2, "loss 0.5")
        logging.getLogger("pmc_jax.anything").warning("checkpoint %s is corrupt", 3)
    with logged_to(path, goes_on=True):
        say("the end")
    say("said in between")
    with pytest.raises(UserError), logged_to(path, goes_on=True):
        raise UserError("it went wrong")
    text = path.read_text()
    told = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in text.splitlines()]
    assert told[0].startswith("--- ")
    assert told[told.index("Prompt: plain") :] == [
        "Prompt: plain", "two lines", "of text", "training: 2/2 (0 s)  loss 0.5",
        "warning: checkpoint 3 is corrupt", "the end", "said in between", "error: it went wrong",
    ]  # fmt: skip
    assert "\x1b" not in text
    printed = capsys.readouterr().out
    assert "two lines\nof text\n" in printed and "the end\n" in printed


@pytest.mark.parametrize(
    ("end", "line"),
    [(Stopped("stopped after step 2 of 4"), "stopped after step 2 of 4"),
     (KeyboardInterrupt(), "interrupted")],
)  # fmt: skip
def test_a_run_that_is_told_to_end_logs_one_line(end, line, tmp_path):
    with pytest.raises(type(end)), logged_to(tmp_path / "log.txt"):
        raise end
    assert [text[10:] for text in (tmp_path / "log.txt").read_text().splitlines()[-1:]] == [line]
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(UserError, match=r"log\.txt: cannot be written"),
        logged_to(tmp_path / "missing" / "log.txt"),
    ):
        pass
