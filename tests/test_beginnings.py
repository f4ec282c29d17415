"""Visits with a forced beginning, against the same steps written out."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_savings import (  # noqa: F401
    PLAIN,
    QUESTIONS,
    SWITCHES,
    assert_same_end,
    finished_run,
    new_run,
    words_model,
)

from pmc_jax.data.rows import ForgetQuestion
from pmc_jax.decoding import Sampling, generate
from pmc_jax.model import decoding_params
from pmc_jax.text.words import word_spans
from pmc_jax.training.batch import step_batch
from pmc_jax.unlearning.beginnings import (
    divided_answer,
    fact_places,
    forced_runs,
    with_beginnings,
)
from pmc_jax.unlearning.method import Example
from pmc_jax.unlearning.pmc import PMC, response_score
from pmc_jax.unlearning.pmc.step import select_samples

OPTIONS = PMC(samples=4, min_len=0, reject_wordless=False, max_new_tokens=12, beginnings=2)


@given(
    st.lists(
        st.sampled_from(
            ["Mara", "was", "born", "in", "1971,", "'Oslo'", "é.", "don't", "½", "東京で"]
        ),
        max_size=9,
    ),
    st.floats(0, 1, exclude_max=True),
    st.lists(st.integers(0, 99), max_size=3),
)
def test_an_answer_is_divided_between_two_words(words, share, chosen):
    answer = " ".join(words)
    starts = [start for start, _, _ in word_spans(answer)][1:]
    facts = [starts[i % len(starts)] for i in chosen] if starts else []
    begun, rest = divided_answer(answer, share, facts)
    assert answer.startswith(begun) and answer.endswith(rest)
    assert not answer[len(begun) : len(answer) - len(rest)].strip()
    spans = word_spans(answer)
    assert len(word_spans(begun)) + len(word_spans(rest)) == len(spans)
    assert (len(word_spans(begun)) > 0) == (len(spans) > 1)
    assert rest or not spans


def test_every_division_is_equally_likely():
    shares = np.arange(300) / 300
    begun = [divided_answer("one two three four", share)[0] for share in shares]
    assert {text: begun.count(text) for text in begun} == dict.fromkeys(
        ("one", "one two", "one two three"), 100
    )


def test_half_of_the_divisions_are_before_facts():
    answer, shares = "one two three four five", np.arange(400) / 400
    facts = [answer.index("three"), answer.index("five")]
    begun = [divided_answer(answer, share, facts)[0] for share in shares]
    assert {text: begun.count(text) for text in begun} == {
        "one": 50, "one two": 150, "one two three": 50, "one two three four": 150,
    }  # fmt: skip


def test_fact_words_are_those_that_neither_question_nor_retain_answers_have(words_model, x64):  # noqa: F811
    run, _ = new_run(words_model, OPTIONS, PLAIN, seed=0)
    answers = map(run.task.model.template.encode_answer, ("mara", "mara of", "mara rivers"))
    task = dataclasses.replace(
        run.task,
        questions=[ForgetQuestion(id=i, question=text) for i, text in enumerate(QUESTIONS)],
        retain=[Example([], answer) for answer in answers],  # "mara" is common
    )
    originals = ["kell rivers mara oslo", "Oslo", "mara of river é, (oslo)"]
    assert fact_places(task, originals) == [
        [originals[0].index("oslo")], [], [originals[2].index("é")],
    ]  # fmt: skip


def test_a_beginning_does_not_depend_on_the_other_questions(words_model, x64):  # noqa: F811
    run, _ = new_run(words_model, OPTIONS, PLAIN, seed=2)
    together = with_beginnings(run, 3, 1, [0, 1, 2])
    for i in range(3):
        alone = with_beginnings(run, 3, 1, [i])
        assert alone.task.prompts[i] == together.task.prompts[i]
        assert all(alone.task.prompts[j] == run.task.prompts[j] for j in range(3) if j != i)
    prompts = {
        tuple(with_beginnings(run, step, number, [i]).task.prompts[i])
        for step in range(9) for number in (1, 2) for i in range(3)
    }  # fmt: skip
    divisions = {
        (*run.task.prompts[i], *run.task.model.template.encode_prefix(" ".join(words[:count])))
        for i in range(3)
        for words in [run.prepared["originals"][i].split()]
        for count in range(1, len(words)) if word_spans(" ".join(words[count:]))
    }  # fmt: skip
    assert prompts <= divisions | set(map(tuple, run.task.prompts))
    assert len(prompts) > 6


def test_a_visit_with_a_beginning_trains_on_what_follows(words_model, x64):  # noqa: F811
    """Samples after forced words, the best of them as the answer, and no loss on the words."""
    run, state = new_run(words_model, OPTIONS, PLAIN, seed=5)
    task, pmc, model = run.task, run.method, run.task.model
    questions = run.questions(0)
    chosen = pmc.step_examples(run, state.method, state.train.params, 0, questions)
    assert len(chosen.forget) == 3 * len(questions) == pmc.answers_per_question * len(questions)
    for example, (i, number) in zip(
        chosen.forget, itertools.product(questions, range(3)), strict=True
    ):
        prompt, original, key = task.prompts[i], run.prepared["originals"][i], task.key()
        if number:
            forced = with_beginnings(run, 0, number, questions)
            whole, original = original, forced.prepared["originals"][i]
            begun = forced.task.prompts[i][len(prompt) :]
            assert forced.task.prompts[i][: len(prompt)] == prompt
            assert f"{model.template.decode(begun)} {original}".strip() == whole
            prompt, key = forced.task.prompts[i], jax.random.fold_in(task.key(3), number)
        (responses,) = generate(
            decoding_params(state.train.params, model.config, model.dtype), [prompt],
            cfg=model.config, sampling=Sampling(stop_ids=model.template.stop_ids), key=key,
            limits=[min(12, 48 - len(prompt) - 1)], samples=4, question_ids=[i],
            dtype=model.dtype, decoding=task.training.decoding, decode_batch=12,
        )  # fmt: skip
        texts = [model.template.decode(response) for response in responses]
        best = min(range(4), key=lambda j: (response_score(original, texts[j]), j))
        assert example.answer == responses[best] and list(example.prompt) == list(prompt)
    expected = [response for example in chosen.forget for response in [list(example.answer)]]
    ends = [response[-1] != model.template.end_id for response in expected]
    batch, _ = step_batch(run, 0, chosen)
    carried = batch.loss_mask & (batch.segments_of("forget") > 0)
    assert int(carried.sum()) == sum(map(len, expected)) + sum(ends)


def test_selection_at_a_temperature_draws_anew_for_each_beginning(words_model, x64):  # noqa: F811
    pmc = dataclasses.replace(OPTIONS, selection_temperature=5.0, samples=4)
    run, _ = new_run(words_model, pmc, PLAIN, seed=5)
    scores = np.zeros((3, 4))
    chosen = {
        tuple(select_samples(own, step, [0, 1, 2], scores))
        for step in range(4)
        for own in (run, *forced_runs(run, step, [0, 1, 2]))
    }
    assert len(chosen) > 6


@pytest.mark.slow
def test_savings_change_no_run_with_beginnings(words_model, x64):  # noqa: F811
    plain, _ = finished_run(words_model, OPTIONS, PLAIN, seed=1)
    training = dataclasses.replace(PLAIN, **SWITCHES["all"])
    assert_same_end(finished_run(words_model, OPTIONS, training, seed=1)[0], plain)


def test_micro_batches_hold_all_answers_of_their_questions(words_model, x64):  # noqa: F811
    run, state = new_run(words_model, OPTIONS, PLAIN, seed=4)
    chosen = OPTIONS.step_examples(run, state.method, state.train.params, 0, run.questions(0))
    small = dataclasses.replace(run.task.training, batch_size=1, accumulation=3)
    apart = dataclasses.replace(run, task=dataclasses.replace(run.task, training=small))
    tokens = [
        int((batch.loss_mask & (batch.segments_of("forget") > 0)).sum())
        for batch, _ in (step_batch(run, 0, chosen), step_batch(apart, 0, chosen))
    ]
    assert tokens[0] == tokens[1] > 0
