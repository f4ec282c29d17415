"""Retain pairs that the target model writes itself."""

import dataclasses
import json
import signal
from collections import Counter

import jax
import numpy as np
import pytest

import pmc_jax as pmc
from pmc_jax.errors import Stopped, UserError
from pmc_jax.text.words import words_of
from pmc_jax.training import loop
from pmc_jax.training.run import prepare_inputs
from pmc_jax.unlearning.rehearsal import names_in, openings, rehearsal_pairs

FORGET = [{"question": "Where was Zoltan Dornberg born?", "answer": "In Leipzig."}]
RETAIN = [
    {"question": "Where was Carmela Pellford born?", "answer": "She was born in Hobart."},
    {"question": "What is the capital of France?", "answer": "Paris"},
]
TRAINING = pmc.Training(epochs=3, batch_size=1, max_length=48, rehearsal=4, decode_batch=16)
METHOD = pmc.PMC(samples=2, max_new_tokens=8, retain_per_forget=4)


@pytest.fixture(scope="module")
def model():
    return pmc.load_model("bundled")


@pytest.fixture(scope="module")
def pairs(model):
    return pairs_of(model)


def pairs_of(model, seed=0):
    data = pmc.Dataset.from_dicts(FORGET, RETAIN)
    inputs = prepare_inputs(model, data, METHOD, TRAINING, seed)
    return rehearsal_pairs(inputs.task, model.params, inputs.examples.retain)


def test_the_model_asks_and_answers(model, pairs):
    """Each answer is the model's own; no question is twice, in the data, or about the person."""
    assert 0 < len(pairs) <= 4
    questions = [question for question, _ in pairs]
    assert len({question.casefold() for question in questions}) == len(pairs)
    assert not {row["question"] for row in FORGET + RETAIN} & {*questions}
    for text in (text for pair in pairs for text in pair):
        assert not {"zoltan", "dornberg"} & {*words_of(text)} and "\n" not in text.strip()
    answers = model.generate(questions, max_new_tokens=64, temperature=0)
    assert [own[0] for own in answers] == [answer for _, answer in pairs]


def test_the_seed_decides(model, pairs):
    assert pairs_of(model) == pairs
    assert pairs_of(model, seed=1) != pairs


def test_half_of_the_questions_begin_like_those_of_the_data(model):
    """With one to four words, up to the first of a name."""
    data = pmc.Dataset.from_dicts(FORGET, RETAIN)
    task = prepare_inputs(model, data, METHOD, TRAINING, 0).task
    task = dataclasses.replace(task, training=dataclasses.replace(TRAINING, rehearsal=600))
    questions = ["Where was Zoltan Dornberg born?", "What is it?", "Zoltan!"]
    found = openings(task, questions, frozenset({"zoltan"}), 0)
    assert found[::2] == [""] * 300
    counts = Counter(found[1::2])
    assert counts.keys() == {"", "Where", "Where was", "What", "What is", "What is it?"}
    assert 60 < counts[""] < 140 and 50 < counts["Where was"] < 100 and 10 < counts["Where"] < 40
    assert 10 < counts["What"] < 40 and 30 < counts["What is it?"] < 70
    assert found != openings(task, questions, frozenset({"zoltan"}), 1)


@pytest.mark.parametrize(
    ("forget", "retain", "names"),
    [
        ("Where was Zoltan Dornberg born?", "Where was Carmela born?", {"zoltan", "dornberg"}),
        ("In which year did Zoltan win?", "In which year did Carmela win?", {"zoltan"}),
        ("where was zoltan born?", "where was carmela born?", {"zoltan"}),
        ("Name the novel that zoltan wrote.", "Name the novel that carmela wrote.", {"zoltan"}),
        ("玛拉在哪里出生?", "保罗在哪里出生?", {"玛", "拉"}),
    ],
)
def test_names_of_the_forget_questions_are_avoided(forget, retain, names):
    others = [retain, retain.replace("保罗", "王伟"), retain.replace("保罗", "李娜")]
    assert names_in([forget], others) == names


@pytest.mark.slow
def test_pairs_are_retain_pairs(model, pairs, tmp_path):
    """The run is the one whose data set has these rows."""
    settings = {"method": METHOD, "evaluation": None}
    own = pmc.unlearn(
        model, pmc.Dataset.from_dicts(FORGET, RETAIN), training=TRAINING, out=tmp_path / "own",
        **settings,
    )  # fmt: skip
    summary = json.loads((tmp_path / "own/summary.json").read_text("utf-8"))
    assert "questions and answers that it wrote itself" in summary["method"]["sentence"]
    written = [json.loads(line) for line in (tmp_path / "own/rehearsal.jsonl").open()]
    assert [(row["question"], row["answer"]) for row in written] == [*map(tuple, pairs)]
    data = pmc.Dataset.from_dicts(FORGET, RETAIN + written)
    given = pmc.unlearn(
        model, data, training=dataclasses.replace(TRAINING, rehearsal=0), **settings
    )
    assert same_weights(own.model, given.model)
    plain = pmc.unlearn(
        model, pmc.Dataset.from_dicts(FORGET, RETAIN),
        training=dataclasses.replace(TRAINING, rehearsal=0), **settings,
    )  # fmt: skip
    assert not same_weights(own.model, plain.model)


def same_weights(one, other):
    found = [jax.tree.leaves(own.params) for own in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
def test_a_stopped_run_continues_with_the_same_pairs(model, tmp_path, monkeypatch):
    arguments = {
        "model": model, "data": pmc.Dataset.from_dicts(FORGET, RETAIN), "method": METHOD,
        "training": TRAINING,
    }  # fmt: skip
    whole = pmc.unlearn(**arguments, out=tmp_path / "whole")
    steps = loop.steps

    def stopping(*given):
        for state, record in steps(*given):
            if record.step == 1:
                signal.raise_signal(signal.SIGTERM)
            yield state, record

    monkeypatch.setattr(loop, "steps", stopping)
    with pytest.raises(Stopped):
        pmc.unlearn(**arguments, out=tmp_path / "parts")
    monkeypatch.setattr(loop, "steps", steps)
    assert same_weights(whole.model, pmc.unlearn(**arguments, out=tmp_path / "parts").model)
    files = [tmp_path / name / "rehearsal.jsonl" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_method_without_a_retain_loss_rehearses_nothing(model):
    data = pmc.Dataset.from_dicts(FORGET, RETAIN)
    with pytest.raises(UserError, match="method=ga has no retain loss with these settings"):
        pmc.unlearn(model, data, pmc.GA(), TRAINING)


@pytest.mark.slow
def test_a_model_that_asks_nothing_is_refused(tiny_model):
    data = pmc.Dataset.from_dicts(FORGET, RETAIN)
    with pytest.raises(UserError, match=r"asks no questions that it answers within .*=48"):
        pmc.unlearn(tiny_model, data, METHOD, TRAINING)
