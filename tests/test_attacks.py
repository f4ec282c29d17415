"""Attacks and likelihoods against transformers, rouge_score and direct formulas in numpy."""

import dataclasses

import numpy as np
import pytest
from evaluated import FORGET, NEW_TOKENS, PREFIX, context_of, hf_answer, recall, torch_loss
from hypothesis import given
from hypothesis import strategies as st

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.choices import (
    Choice,
    choices_of,
    least_likely_attack,
    option_probabilities,
    picked_right,
)
from pmc_jax.evaluation.context import SAMPLING_STREAM, forget_answers
from pmc_jax.evaluation.likelihood import answer_losses
from pmc_jax.evaluation.parts import prefilling_part, quality_part, sampling_part


def test_losses_are_those_of_torch(tiny_model, reference):
    """Answers of one token, of the end token alone, and of several lengths, in uneven batches."""
    template = tiny_model.template
    pairs = [
        (template.encode_prompt(row.question), template.encode_answer(str(row.answer)))
        for row in FORGET
    ]
    pairs += [(pairs[0][0], [7, template.end_id]), (pairs[1][0], [template.end_id])]
    expected = [torch_loss(reference[0], *pair) for pair in pairs]
    seen = []
    together = answer_losses(
        tiny_model, pairs, batch_size=3, on_batch=lambda *done: seen.append(done)
    )
    np.testing.assert_allclose(together, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(answer_losses(tiny_model, pairs, batch_size=1), expected, atol=2e-5)
    answer_tokens = sum(len(answer) for _, answer in pairs)
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(pairs), answer_tokens]


def test_option_probabilities_are_normalised_inverse_perplexities(tiny_model, reference):
    model, tokenizer = reference
    choices = choices_of(FORGET)
    assert choices == (
        Choice(FORGET[0].question, ("Mara comes from Lisbon.", *FORGET[0].perturbed)),
        Choice(FORGET[1].question, ("Oslo", "Lisbon")),
    )
    for choice, found in zip(choices, option_probabilities(tiny_model, choices), strict=True):
        prompt = tokenizer(f"Question: {choice.question}\nAnswer:").input_ids
        inverse = np.array(
            [
                np.exp(-torch_loss(model, prompt, [*tokenizer(f" {o}").input_ids[1:], 1]))
                for o in choice.options
            ]
        )
        np.testing.assert_allclose(found, inverse / inverse.sum(), rtol=1e-4)


ROWS = st.lists(
    st.lists(st.integers(1, 3), min_size=2, max_size=4).map(lambda x: np.array(x) / sum(x)),
    min_size=1,
    max_size=25,
)


@given(ROWS)
def test_the_least_likely_attack_by_counting(rows):
    """Few distinct values, so that options and questions tie."""
    found = least_likely_attack(rows)
    expected = []
    for row in rows:
        least = [i for i, p in enumerate(row) if p == min(row)]
        expected.append((0 in least) / len(least))
    minima = [min(row) for row in rows]
    assert found["accuracy"] == pytest.approx(np.mean(expected))
    assert found["chance"] == pytest.approx(np.mean([1 / len(row) for row in rows]))
    assert found["minima"] == minima and found["right"] == [row[0] for row in rows]
    assert found["median_minimum"] == np.median(minima)
    for part, line in enumerate(found["quantiles"], start=1):
        within = next(
            m for m in sorted(minima) if 20 * sum(x <= m for x in minima) >= part * len(rows)
        )
        hits = [hit for hit, minimum in zip(expected, minima, strict=True) if minimum <= within]
        assert line["quantile"] == part / 20 and line["minimum"] == within
        assert line["questions"] == len(hits)
        assert line["accuracy"] == pytest.approx(np.mean(hits))
    assert found["quantiles"][-1]["accuracy"] == pytest.approx(found["accuracy"])


def test_options_that_cannot_be_told_apart_are_a_blind_guess():
    found = least_likely_attack([np.full(5, 0.2)])
    assert found["accuracy"] == found["most_likely_accuracy"] == found["chance"] == 0.2
    assert picked_right(np.array([False, True])) == 0


@pytest.fixture(scope="module")
def known(reference) -> tuple[EvaluationRow, ...]:
    """The model's own answer, its answer after the forced prefix, and the prefix."""
    first, second, third = FORGET
    return (
        dataclasses.replace(first, answer=hf_answer(reference, first)),
        dataclasses.replace(second, answer=hf_answer(reference, second, PREFIX)),
        dataclasses.replace(third, answer=PREFIX),
    )


def test_the_prefilling_attack_scores_what_follows_the_prefix(tiny_model, reference, known):
    found = prefilling_part(context_of(tiny_model, {"forget": known}))
    expected = [recall(row, hf_answer(reference, row, PREFIX)) for row in known]
    assert expected[1:] == [1, 0]
    assert [row["recall"] for row in found["greedy"]["questions"]] == pytest.approx(expected)
    assert found["greedy"]["mean"] == pytest.approx(np.mean(expected))
    assert found["prefix"] == PREFIX and found["sampled"]["samples"] == 3


def test_sampling_one_possible_token_is_greedy(tiny_model, reference, known):
    """With top_k = 1, every sample is the greedy answer of transformers at any temperature."""
    evaluation = EvaluationConfig(NEW_TOKENS, attack_samples=3, attack_top_k=1)
    x = dataclasses.replace(context_of(tiny_model, {"forget": known}), evaluation=evaluation)
    found = sampling_part(x)
    assert found["questions"][0]["recalls"] == [1, 1, 1]
    for row, question in zip(known, found["questions"], strict=True):
        assert question["id"] == row.id
        assert question["recalls"] == pytest.approx([recall(row, hf_answer(reference, row))] * 3)
    assert found["curve"] == pytest.approx([found["mean"]] * 3)


def test_samples_do_not_depend_on_how_many_are_drawn(tiny_model):
    x = context_of(tiny_model)
    few, many = (
        [
            [answer.text for answer in row]
            for row in forget_answers(x, SAMPLING_STREAM, samples=samples)
        ]
        for samples in (3, 5)
    )
    assert few == [row[:3] for row in many]
    assert all(len(set(row)) == 5 for row in many)


def test_quality_is_greedy(tiny_model, reference, known):
    found = quality_part(context_of(tiny_model, {"forget": known, "retain": known[:1]}))
    texts = [hf_answer(reference, row) for row in known]
    assert [answer["text"] for answer in found["answers"]] == [*texts, texts[0]]
    expected = np.mean([recall(row, text) for row, text in zip(known, texts, strict=True)])
    assert found["measures"]["unlearn_quality"] == pytest.approx(100 * (1 - expected))
    assert found["measures"]["utility"] == 100
    assert found["measures"]["worst_case_leakage"] is None
