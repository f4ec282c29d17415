"""Responses to forget questions: y0 of the target model, and samples of the current model."""

from collections.abc import Sequence
from functools import partial

import jax

from pmc_jax.decoding import Sampling, generate
from pmc_jax.model import decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.unlearning.method import Run, Task, Tokens
from pmc_jax.unlearning.pmc.memory import ResponseMemory
from pmc_jax.unlearning.pmc.reward import least_score, score_sample
from pmc_jax.unlearning.pmc.settings import PMCSettings
from pmc_jax.unlearning.savings.arguments import savings
from pmc_jax.unlearning.savings.pruning import Scoring


def response_limit(prompt: Tokens, max_length: int, max_new_tokens: int | None) -> int:
    """The most tokens to sample, so that prompt, response and end token fit `max_length`."""
    room = max_length - len(prompt) - 1
    return room if max_new_tokens is None else min(room, max_new_tokens)


def sample_limit(run: Run[PMCSettings], question: int) -> int:
    """The most tokens of a sampled response to a forget question."""
    prompt, limit = run.task.prompts[question], run.task.training.max_length
    return response_limit(prompt, limit, run.method.max_new_tokens)


def original_answers(task: Task, params: Params, max_new_tokens: int | None) -> list[str]:
    """y0: the target model's own greedy answer to every forget question.

    `params` are the target model's weights. Nothing else of the target model is needed later.
    """
    model, training = task.model, task.training
    responses = generate(
        decoding_params(params, model.config, model.dtype),
        task.prompts,
        cfg=model.config,
        sampling=Sampling(temperature=0.0, stop_ids=model.template.stop_ids),
        key=jax.random.key(0),  # greedy decoding draws nothing
        limits=[response_limit(p, training.max_length, max_new_tokens) for p in task.prompts],
        decode_batch=training.decode_batch,
        dtype=model.dtype,
    )
    return [model.template.decode(row[0]) for row in responses]


def sampler(pmc: PMCSettings, stop_ids: tuple[int, ...]) -> Sampling:
    """How responses are drawn: temperature, then top-k, then top-p."""
    return Sampling(
        temperature=pmc.temperature, top_k=pmc.top_k, top_p=pmc.top_p, stop_ids=stop_ids
    )


def sample_responses(
    run: Run[PMCSettings],
    memory: ResponseMemory,
    params: Params,
    step: int,
    questions: Sequence[int],
) -> list[list[list[int]]]:
    """x_1, …, x_n ~ p_θ(· | q) for each question, stop tokens included, without dropout.

    All questions of a step are sampled from the weights `params` at its start. A sample that can
    no longer be selected may be cut short (`savings`).
    """
    if not questions:
        return []
    pmc, task, model = run.method, run.task, run.task.model
    moving = pmc.final_temperature is not None
    return generate(
        decoding_params(params, model.config, model.dtype),
        [task.prompts[i] for i in questions],
        cfg=model.config,
        sampling=sampler(pmc, model.template.stop_ids),
        temperature=(run.at_step(step, pmc.temperature, pmc.final_temperature) if moving else None),
        key=run.sampling_key,
        limits=[sample_limit(run, i) for i in questions],
        samples=pmc.samples,
        step=step,
        question_ids=questions,
        dtype=model.dtype,
        **savings(run, questions, scoring(run, memory), memory.response),
    )


def scoring(run: Run[PMCSettings], memory: ResponseMemory) -> Scoring | None:
    """What decides which samples can still be selected; None where selection is random."""
    if run.method.selection_temperature > 0:
        return None
    return Scoring(memory.score, partial(score_sample, run), least_score(run))
