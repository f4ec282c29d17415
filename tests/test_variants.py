"""What is not in the paper: off, it is the published algorithm; on, it does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pmc_jax.training.pmc_run import step_questions
from pmc_jax.training.responses import score_response
from pmc_jax.unlearning.config import PMCConfig
from test_savings import PLAIN, assert_same_end, finished_run, new_run, words_model  # noqa: F401
from test_training import unequal_rows

from pmc_jax.cli.config import Config, check_values
from pmc_jax.decoding import Decoding, Sampling, generate, sampler
from pmc_jax.errors import UserError
from pmc_jax.model import decoding_params
from pmc_jax.runs.checkpoints import RunState
from pmc_jax.training.loop import build_rows, pmc_steps
from pmc_jax.training.step import Norms, init_state, make_train_step
from pmc_jax.unlearning import PMCLoss, ResponseMemory, response_score

SHORT = dataclasses.replace(PLAIN, epochs=4)


def published(run, state):
    """The steps of the paper's algorithm, written out; returns weights and remembered responses."""
    train, best = state.train, {}
    for step in range(4):
        questions = step_questions(run, step)
        sampled = [i for i in questions if best.get(i, (1.0,))[0] != 0.0]
        prompts = [run.task.prompts[i] for i in sampled]
        responses = sampled and generate(
            decoding_params(train.params, run.model, run.dtype), prompts, cfg=run.model,
            sampling=Sampling(run.pmc.temperature, stop_ids=run.template.stop_ids), key=run.key,
            limits=[min(run.pmc.max_new_tokens, 48 - len(prompt) - 1) for prompt in prompts],
            samples=run.pmc.samples, step=step, question_ids=sampled, dtype=run.dtype,
            decoding=run.batch.decoding, rows=12,
        )  # fmt: skip
        for i, row in zip(sampled, responses, strict=True):
            texts = [run.template.decode(response) for response in row]
            scores = [response_score(run.task.originals[i], text) for text in texts]
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
        rows, _ = build_rows(run, memory, step, questions)
        train, *_ = run.train_step(train, rows)
    return RunState(train, memory)


@pytest.mark.slow
def test_without_options_the_algorithm_is_the_published_one(words_model, x64, quick_compilation):  # noqa: F811
    pmc = PMCConfig(samples=4, temperature=0.8, min_len=0, reject_wordless=False, max_new_tokens=12)
    found, records = finished_run(words_model, pmc, SHORT, seed=5)
    assert_same_end(found, published(*new_run(words_model, pmc, SHORT, seed=5)))
    assert 0 < sum(record.questions_sampled for record in records) < 4 * 3


def test_all_questions_keep_being_sampled(words_model, x64):  # noqa: F811
    """Ties take the newer response, so that one of score 0 gives way to the next."""
    pmc = PMCConfig(samples=4, min_len=0, reject_wordless=False, max_new_tokens=12)
    run, state = new_run(words_model, dataclasses.replace(pmc, keep_sampling=True), SHORT, seed=5)
    zeros = []
    for state, record in pmc_steps(run, state):  # noqa: B020
        assert record.questions_sampled == len(record.questions)
        for i in record.questions:
            response = state.memory.tokens[i, : state.memory.length[i]].tolist()
            assert state.memory.score[i] == score_response(run, i, response)
            zeros += [(i, tuple(response))] if state.memory.score[i] == 0 else []
    assert len(set(zeros)) > len({i for i, _ in zeros}) > 0


@pytest.mark.slow
def test_any_temperature_is_drawn_by_the_same_program(words_model, x64, quick_compilation):  # noqa: F811
    run, state = new_run(words_model, PMCConfig(samples=4), PLAIN, seed=2)

    def drawn(sampling: float, temperature: float | None):
        return generate(
            state.train.params, run.task.prompts, cfg=run.model, temperature=temperature,
            sampling=Sampling(sampling, 5, 0.9, stop_ids=run.template.stop_ids), key=run.key,
            limits=[14] * 3, samples=4, dtype=run.dtype, decoding=Decoding(compact=False),
        )  # fmt: skip

    apart = drawn(0.5, None)
    assert drawn(1.0, 0.5) == apart
    compiled = sampler.decode_chunk._cache_size(), sampler.begin_decoding._cache_size()
    assert drawn(1.0, 1.3) != apart
    assert (sampler.decode_chunk._cache_size(), sampler.begin_decoding._cache_size()) == compiled


@pytest.mark.slow
def test_any_retain_weight_is_used_by_the_same_program(words_model, rng, x64, quick_compilation):  # noqa: F811
    checkpoint, optimizer, _ = words_model
    rows = unequal_rows(rng)
    rows = rows.replace(tokens=rows.tokens % checkpoint.cfg.vocab_size)

    def trained(weight: float, *own: float):
        step = make_train_step(optimizer, checkpoint.cfg, weight, dtype="float64")
        copied = jax.tree.map(lambda leaf: leaf + 0, checkpoint.params)
        for value in own or (None,):
            state = init_state(copied, optimizer)
            copied = jax.tree.map(lambda leaf: leaf + 0, checkpoint.params)
            state, losses, _ = step(state, rows, *(() if value is None else (value,)))
        assert step._cache_size() == 1
        return [losses.loss, *jax.tree.leaves(state.params)]

    for a, b in zip(trained(0.3), trained(9.0, 2.0, 0.3), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [8, 1])
def test_settings_move_linearly_over_a_run(words_model, steps, monkeypatch, x64):  # noqa: F811
    pmc = PMCConfig(
        samples=2, temperature=0.5, final_temperature=1.9, retain_weight=2.1,
        final_retain_weight=0.0, keep_sampling=True,
    )  # fmt: skip
    run, state = new_run(words_model, pmc, dataclasses.replace(PLAIN, epochs=steps), seed=1)
    temperatures, weights = [], []

    def generated(params, prompts, *, temperature, **options):
        temperatures.append(temperature)
        return [[[*run.template.stop_ids[:1]]] * 2 for _ in prompts]

    def train_step(state, rows, weight):
        weights.append(weight)
        return state, PMCLoss(*[jnp.zeros(())] * 3), Norms(jnp.zeros(()), None)

    monkeypatch.setattr("pmc_jax.training.responses.generate", generated)
    for _ in pmc_steps(dataclasses.replace(run, train_step=train_step), state):
        pass
    assert temperatures == pytest.approx(np.linspace(0.5, 1.9, steps))
    assert weights == pytest.approx(np.linspace(2.1, 0.0, steps))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"final_temperature": 0.0}, "method.final_temperature=0.0: expected more than 0"),
        ({"final_retain_weight": -1.0}, "method.final_retain_weight=-1.0: expected at least 0"),
        ({"temperature": 0.0, "final_temperature": 1.0}, "method.temperature=0 is greedy"),
    ],
)
def test_what_cannot_be_is_refused(settings, line):
    with pytest.raises(UserError, match=line):
        check_values(Config(method=PMCConfig(**settings)))
