"""Options beyond the paper: without them it is the published algorithm; with them they work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_savings import PLAIN, assert_same_end, finished_run, new_run, words_model  # noqa: F401

from pmc_jax.cli.config import Config, check_values
from pmc_jax.decoding import Decoding, Sampling, generate, sampler
from pmc_jax.errors import UserError
from pmc_jax.model import decoding_params
from pmc_jax.training.batch import pack_batch, step_batch
from pmc_jax.training.loop import steps
from pmc_jax.training.objective import Losses
from pmc_jax.training.step import Norms, RunState, init_state, make_train_step
from pmc_jax.unlearning.method import Example, StepExamples
from pmc_jax.unlearning.pmc import PMC, ResponseMemory, response_score
from pmc_jax.unlearning.pmc.reward import score_sample

SHORT = dataclasses.replace(PLAIN, epochs=4)


def published(run, state, train_step):
    """The steps of the paper's algorithm, written out; returns weights and remembered responses."""
    train, best = state.train, {}
    task, pmc, originals = run.task, run.method, run.prepared["originals"]
    model, template = task.model, task.model.template
    for step in range(4):
        questions = run.questions(step)
        sampled = [i for i in questions if best.get(i, (1.0,))[0] != 0.0]
        prompts = [task.prompts[i] for i in sampled]
        responses = sampled and generate(
            decoding_params(train.params, model.config, model.dtype), prompts, cfg=model.config,
            sampling=Sampling(pmc.temperature, stop_ids=template.stop_ids), key=task.key(),
            limits=[min(pmc.max_new_tokens, 48 - len(prompt) - 1) for prompt in prompts],
            samples=pmc.samples, step=step, question_ids=sampled, dtype=model.dtype,
            decoding=task.training.decoding, decode_batch=12,
        )  # fmt: skip
        for i, row in zip(sampled, responses, strict=True):
            texts = [template.decode(response) for response in row]
            scores = [response_score(originals[i], text) for text in texts]
            least = min(scores)
            if least <= best.get(i, (np.inf,))[0]:
                best[i] = least, row[scores.index(least)]
        memory = ResponseMemory(
            score=np.array([best.get(i, (np.inf,))[0] for i in range(3)]),
            tokens=np.array(
                [row + [0] * (48 - len(row)) for row in (best.get(i, (0, []))[1] for i in range(3))]
            ),
            length=np.array([len(best.get(i, (0, []))[1]) for i in range(3)]),
        )
        remembered = [Example(task.prompts[i], best[i][1]) for i in questions]
        batch, _ = step_batch(run, step, StepExamples(remembered, [], memory))
        train, *_ = train_step(train, batch, 1.0, {})
    return RunState(train, memory)


@pytest.mark.slow
def test_without_options_the_algorithm_is_the_published_one(words_model, x64, quick_compilation):  # noqa: F811
    pmc = PMC(samples=4, temperature=0.8, min_len=0, reject_wordless=False, max_new_tokens=12)
    found, records = finished_run(words_model, pmc, SHORT, seed=5)
    expected = published(*new_run(words_model, pmc, SHORT, seed=5), words_model[2])
    assert_same_end(found, expected)
    assert 0 < sum(record.measures["questions_sampled"] for record in records) < 4 * 3


@pytest.mark.slow
def test_all_questions_keep_being_sampled(words_model, x64):  # noqa: F811
    """A tie replaces the remembered response, so even one of score 0 gives way to the next."""
    pmc = PMC(samples=4, min_len=0, reject_wordless=False, max_new_tokens=12)
    run, state = new_run(words_model, dataclasses.replace(pmc, keep_sampling=True), SHORT, seed=5)
    zeros = []
    for state, record in steps(run, words_model[2], {}, state):  # noqa: B020
        assert record.measures["questions_sampled"] == len(record.questions)
        memory = state.method
        for i in record.questions:
            response = tuple(memory.tokens[i, : memory.length[i]].tolist())
            assert memory.score[i] == score_sample(run, i, response)
            zeros += [(i, response)] if memory.score[i] == 0 else []
    assert len(set(zeros)) > len({i for i, _ in zeros}) > 0


@pytest.mark.slow
def test_one_function_draws_at_any_temperature(words_model, x64, quick_compilation):  # noqa: F811
    run, state = new_run(words_model, PMC(samples=4), PLAIN, seed=2)
    task, model = run.task, run.task.model

    def drawn(sampling: float, temperature: float | None):
        return generate(
            state.train.params, task.prompts, cfg=model.config, temperature=temperature,
            sampling=Sampling(sampling, 5, 0.9, stop_ids=model.template.stop_ids),
            key=task.key(), limits=[14] * 3, samples=4, dtype=model.dtype,
            decoding=Decoding(compact=False),
        )  # fmt: skip

    apart = drawn(0.5, None)
    assert drawn(1.0, 0.5) == apart
    compiled = sampler.decode_chunk._cache_size(), sampler.begin_decoding._cache_size()
    assert drawn(1.0, 1.3) != apart
    assert (sampler.decode_chunk._cache_size(), sampler.begin_decoding._cache_size()) == compiled


@pytest.mark.slow
def test_one_function_takes_any_retain_weight(words_model, rng, x64, quick_compilation):  # noqa: F811
    checkpoint, optimizer, _ = words_model

    def examples(count: int) -> list[Example]:
        lengths = rng.integers([2, 1], [6, 9], (count, 2))
        drawn = [[rng.integers(3, 11, length).tolist() for length in own] for own in lengths]
        return [Example(*own) for own in drawn]

    batch, _ = pack_batch(
        {"forget": examples(3), "retain": examples(4)}, (2, 0, 2), accumulation=2, max_length=14,
        dtype="float64",
    )  # fmt: skip

    def trained(*weights: float):
        step = make_train_step(optimizer, PMC(), checkpoint.cfg, dtype="float64")
        for weight in weights:
            state = init_state(jax.tree.map(jnp.copy, checkpoint.params), optimizer)
            state, losses, _ = step(state, batch, weight, {})
        assert step._cache_size() == 1
        return [losses.loss, *jax.tree.leaves(state.params)]

    for a, b in zip(trained(0.3), trained(9.0, 2.0, 0.3), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    assert trained(9.0)[0] != trained(0.3)[0]


@pytest.mark.parametrize("count", [8, 1])
def test_settings_move_linearly_over_a_run(words_model, count, monkeypatch, x64):  # noqa: F811
    pmc = PMC(
        samples=2, temperature=0.5, final_temperature=1.9, retain_weight=2.1,
        final_retain_weight=0.0, keep_sampling=True,
    )  # fmt: skip
    run, state = new_run(words_model, pmc, dataclasses.replace(PLAIN, epochs=count), seed=1)
    temperatures, weights = [], []

    def generated(params, prompts, *, temperature, **options):
        temperatures.append(temperature)
        return [[[*run.task.model.template.stop_ids[:1]]] * 2 for _ in prompts]

    def train_step(state, batch, weight, frozen):
        weights.append(weight)
        return state, Losses(*[jnp.zeros(())] * 3), Norms(jnp.zeros(()), None)

    monkeypatch.setattr("pmc_jax.unlearning.pmc.sampling.generate", generated)
    for _ in steps(run, train_step, {}, state):
        pass
    assert temperatures == pytest.approx(np.linspace(0.5, 1.9, count))
    assert weights == pytest.approx(np.linspace(2.1, 0.0, count))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"final_temperature": 0.0}, "method.final_temperature=0.0: expected more than 0"),
        ({"final_retain_weight": -1.0}, "method.final_retain_weight=-1.0: expected at least 0"),
        ({"temperature": 0.0}, "method.temperature=0.0: expected more than 0"),
    ],
)
def test_what_cannot_be_is_refused(settings, line):
    with pytest.raises(UserError, match=line):
        check_values(Config(method=PMC(**settings)))
