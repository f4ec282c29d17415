"""Refusals as candidates of the selection, against the same steps written out."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from test_savings import (  # noqa: F401
    PLAIN,
    SWITCHES,
    assert_same_end,
    finished_run,
    new_run,
    words_model,
)

from pmc_jax.decoding import Sampling, generate
from pmc_jax.model import decoding_params
from pmc_jax.unlearning.baselines.refusals import DEFAULT_REFUSAL
from pmc_jax.unlearning.beginnings import with_beginnings
from pmc_jax.unlearning.offers import offered_refusals
from pmc_jax.unlearning.pmc import PMC, response_score
from pmc_jax.unlearning.pmc.reward import score_sample
from pmc_jax.unlearning.pmc.sampling import sample_limit
from pmc_jax.unlearning.pmc.step import select_samples

REFUSALS = ("kell", "é of river", "oslo rivers .")
OPTIONS = PMC(samples=2, min_len=0, reject_wordless=False, max_new_tokens=12, offer_refusals=True)


def offers_to(run, step, questions):
    limit, score = partial(sample_limit, run), partial(score_sample, run)
    return offered_refusals(run, step, questions, limit, score)


def with_refusals(run, texts=REFUSALS):
    return dataclasses.replace(run, task=dataclasses.replace(run.task, refusals=texts))


def test_every_refusal_is_offered_equally_often(words_model, x64):  # noqa: F811
    run = with_refusals(new_run(words_model, OPTIONS, PLAIN, seed=0)[0])
    decode = run.task.model.template.decode
    drawn = [
        decode(tokens)
        for step in range(400)
        for tokens in offers_to(run, step, [0, 1, 2]).tokens
    ]  # fmt: skip
    counts = np.array([drawn.count(text) for text in REFUSALS])
    assert counts.sum() == len(drawn)
    assert (abs(counts / len(drawn) - 1 / 3) < 4 * np.sqrt(2 / 9 / len(drawn))).all()
    alone = [decode(offers_to(run, 7, [i]).tokens[0]) for i in range(3)]
    assert alone == [decode(tokens) for tokens in offers_to(run, 7, [0, 1, 2]).tokens]


def test_without_refusals_in_the_data_there_is_a_default(words_model, x64):  # noqa: F811
    run, _ = new_run(words_model, OPTIONS, PLAIN, seed=0)
    template = run.task.model.template
    expected = template.encode_answer(DEFAULT_REFUSAL)
    assert offers_to(run, 0, [1]).tokens == [expected]


def test_the_best_of_samples_and_refusal_is_trained_on(words_model, x64):  # noqa: F811
    """Samples and a refusal, scored by hand; the first of the best, samples before the refusal."""
    pmc, taken = dataclasses.replace(OPTIONS, beginnings=1), {"sample": 0, "refusal": 0}
    for seed in range(6):
        run, state = new_run(words_model, pmc, PLAIN, seed=seed)
        run = with_refusals(run)
        task, model = run.task, run.task.model
        questions = run.questions(0)
        found = pmc.step_examples(run, state.method, state.train.params, 0, questions)
        for number in (0, 1):
            own = with_beginnings(run, 0, number, questions) if number else run
            for row, i in enumerate(questions):
                prompt, original = own.task.prompts[i], own.prepared["originals"][i]
                key = jax.random.fold_in(task.key(3), 1) if number else task.key()
                (responses,) = generate(
                    decoding_params(state.train.params, model.config, model.dtype), [prompt],
                    cfg=model.config, sampling=Sampling(stop_ids=model.template.stop_ids),
                    key=key, limits=[min(12, 48 - len(prompt) - 1)], samples=2, question_ids=[i],
                    dtype=model.dtype, decoding=task.training.decoding, decode_batch=6,
                )  # fmt: skip
                offered = offers_to(own, 0, [i]).tokens[0]
                texts = [model.template.decode(x) for x in (*responses, offered)]
                assert texts[-1] in REFUSALS
                scores = [response_score(original, text) for text in texts]
                best = scores.index(min(scores))
                taken["refusal" if best == 2 else "sample"] += 1
                example = found.forget[2 * row + number]
                assert list(example.answer) == [*responses, offered][best]
                assert list(example.prompt) == list(prompt)
    assert min(taken.values()) > 3


def test_a_refusal_goes_on_after_a_beginning(words_model, x64):  # noqa: F811
    run, _ = new_run(words_model, dataclasses.replace(OPTIONS, beginnings=1), PLAIN, seed=2)
    run = with_refusals(run)
    template, begun = run.task.model.template, 0
    for step in range(8):
        forced = with_beginnings(run, step, 1, [0, 1, 2])
        for i, tokens in enumerate(offers_to(forced, step, [0, 1, 2]).tokens):
            words = forced.task.prompts[i][len(run.task.prompts[i]) :]
            begun += bool(words)
            text = template.decode([*words, *tokens])
            assert text.removeprefix(template.decode(words)).strip() in REFUSALS
            assert tokens[-1] == template.end_id
    assert begun > 8


def test_a_refusal_takes_part_in_a_random_selection(words_model, x64):  # noqa: F811
    """Equal scores at a high temperature: each of three candidates in a third of the draws."""
    pmc = dataclasses.replace(OPTIONS, selection_temperature=5.0)
    run, _ = new_run(words_model, pmc, PLAIN, seed=5)
    chosen = np.concatenate(
        [select_samples(run, step, [0, 1, 2], np.zeros((3, 3))) for step in range(100)]
    )
    shares = np.bincount(chosen, minlength=3) / len(chosen)
    assert (abs(shares - 1 / 3) < 4 * np.sqrt(2 / 9 / len(chosen))).all()


@pytest.mark.slow
@pytest.mark.parametrize("beginnings", [0, 1])
def test_savings_change_no_run_with_offers(words_model, beginnings, x64):  # noqa: F811
    pmc = dataclasses.replace(OPTIONS, samples=4, beginnings=beginnings, keep_sampling=True)
    plain, records = finished_run(words_model, pmc, PLAIN, seed=1)
    training = dataclasses.replace(PLAIN, **SWITCHES["all"])
    found, fewer = finished_run(words_model, pmc, training, seed=1)
    assert_same_end(found, plain)
    decoded = [sum(x.measures["tokens_sampled"] for x in own) for own in (fewer, records)]
    assert decoded[0] < decoded[1]
