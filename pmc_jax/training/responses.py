"""Responses to forget questions: sampled, cut short, scored; the best of each remembered."""

from collections.abc import Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, DTypeLike

from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.decoding import FINISHED, RUNNING, PruneBatch, Responses, Sampling, generate, is_whole
from pmc_jax.model import ModelConfig, decoding_params, to_devices
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import RunState
from pmc_jax.training.batch import BatchConfig
from pmc_jax.training.pmc_run import PMCRun, at_step
from pmc_jax.unlearning import (
    ResponseMemory,
    cannot_be_selected,
    response_score,
    score_bound,
    select,
    selection_keys,
    update_memory,
)


def response_limit(prompt: Sequence[int], max_length: int, max_new_tokens: int | None) -> int:
    """Most tokens to sample so that prompt, response and end token fit `max_length`."""
    room = max_length - len(prompt) - 1
    return room if max_new_tokens is None else min(room, max_new_tokens)


def sample_limit(run: PMCRun, question: int) -> int:
    """Most tokens of a sampled response to a forget question."""
    prompt = run.task.prompts[question]
    return response_limit(prompt, run.batch.max_length, run.pmc.max_new_tokens)


def greedy_originals(
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    model: ModelConfig,
    template: PromptTemplate,
    batch: BatchConfig,
    max_new_tokens: int | None,
    dtype: DTypeLike = jnp.float32,
) -> list[str]:
    """y0: the target model's own greedy answer to every forget prompt."""
    responses = generate(
        decoding_params(params, model, dtype),
        prompts,
        cfg=model,
        sampling=Sampling(temperature=0.0, stop_ids=template.stop_ids),
        key=jax.random.key(0),  # greedy decoding draws nothing
        limits=[response_limit(prompt, batch.max_length, max_new_tokens) for prompt in prompts],
        rows=batch.rows,
        dtype=dtype,
    )
    return [template.decode(row[0]) for row in responses]


def score_response(run: PMCRun, question: int, tokens: Sequence[int]) -> float:
    """The score of a whole response to a forget question."""
    return response_score(
        run.task.originals[question],
        run.template.decode(tokens),
        min_len=run.pmc.min_len,
        reject_wordless=run.pmc.reject_wordless,
    )


def response_bound(run: PMCRun, question: int, tokens: Sequence[int]) -> float:
    """The least score that a response to a forget question can have which begins so."""
    return score_bound(run.task.originals[question], run.template.decode_settled(tokens))


def pruning(run: PMCRun, memory: ResponseMemory, questions: Sequence[int]) -> PruneBatch | None:
    """Which samples of `questions` need not be decoded any further, as `generate` asks for it.

    Without `prune` the bound of a sample is 0, so that one that scores 0 still spares those
    after it.
    """
    if run.pmc.selection_temperature > 0 or not (run.batch.prune or run.batch.wave):
        return None
    score = cache(partial(score_response, run))
    bound = cache(partial(response_bound, run))

    def prune(places: Sequence[int], found: Responses) -> Bool[np.ndarray, "batch samples"]:
        scores, bounds = np.full(found.status.shape, np.inf), np.zeros(found.status.shape)
        remembered = np.full(len(scores), np.inf)
        asked = [questions[place] for place in places]
        remembered[: len(asked)] = memory.score[asked]
        for row, j in np.argwhere(found.status[: len(asked)] == FINISHED).tolist():
            scores[row, j] = score(asked[row], tuple(found.tokens_of(row, j)))
        running = (found.status[: len(asked)] == RUNNING) & run.batch.prune
        for row, j in np.argwhere(running).tolist():
            bounds[row, j] = bound(asked[row], tuple(found.tokens_of(row, j)))
        return cannot_be_selected(remembered, scores, bounds)

    return prune


def sample_responses(
    run: PMCRun, state: RunState, step: int, questions: Sequence[int]
) -> list[list[list[int]]]:
    """n responses per question from the current weights, stop tokens included.

    Those that cannot be selected may be cut short.
    """
    if not questions:
        return []
    pmc, prompts = run.pmc, [run.task.prompts[i] for i in questions]
    return generate(
        decoding_params(state.train.params, run.model, run.dtype),
        prompts,
        cfg=run.model,
        temperature=at_step(run, step, pmc.temperature, pmc.final_temperature),
        sampling=Sampling(
            temperature=pmc.temperature,
            top_k=pmc.top_k,
            top_p=pmc.top_p,
            stop_ids=run.template.stop_ids,
        ),
        key=run.key,
        limits=[sample_limit(run, i) for i in questions],
        samples=pmc.samples,
        step=step,
        question_ids=questions,
        longest_prompt=run.task.longest_prompt,
        rows=run.batch.sampled_at_once(pmc.samples) * pmc.samples,
        dtype=run.dtype,
        decoding=run.batch.decoding,
        wave=run.batch.wave,
        prune=pruning(run, state.memory, questions),
    )


def whole_responses(
    run: PMCRun, questions: Sequence[int], responses: Sequence[Sequence[Sequence[int]]]
) -> Bool[np.ndarray, "questions samples"]:
    """Which responses came to their end."""
    stops = run.template.stop_ids
    whole = [
        [is_whole(tokens, sample_limit(run, i), stops) for tokens in row]
        for i, row in zip(questions, responses, strict=True)
    ]
    return np.array(whole, bool).reshape(len(questions), run.pmc.samples)


def tokens_saved(
    responses: Sequence[Sequence[Sequence[int]]], whole: Bool[np.ndarray, "questions samples"]
) -> int:
    """How many tokens the cut responses lack, were they as long as the whole ones on average."""
    lengths = np.array([len(tokens) for row in responses for tokens in row])
    whole = whole.reshape(-1)
    if not whole.any():
        return 0
    return round(float(np.maximum(lengths[whole].mean() - lengths[~whole], 0).sum()))


def select_samples(
    run: PMCRun, step: int, questions: Sequence[int], scores: np.ndarray
) -> list[int]:
    """The chosen sample of each question; `scores` is [questions, samples].

    Filled up to the questions of a whole step, so that every step has the same shapes.
    """
    count = run.batch.questions_per_step
    ids, padded = np.zeros(count, np.uint32), np.zeros((count, scores.shape[1]))
    ids[: len(questions)], padded[: len(questions)] = questions, scores
    temperature = run.pmc.selection_temperature
    keys = selection_keys(run.key, step, to_devices(ids)) if temperature > 0 else None
    return select(padded, temperature, keys)[: len(questions)].tolist()


def remember_best(
    run: PMCRun,
    memory: ResponseMemory,
    step: int,
    questions: Sequence[int],
    responses: Sequence[Sequence[Sequence[int]]],
    whole: Bool[np.ndarray, "questions samples"],
) -> ResponseMemory:
    """Score the whole samples against y0, select one per question, and update the memory."""
    if not questions:
        return memory
    score = cache(partial(score_response, run))
    scores = np.full(whole.shape, np.inf)
    for row, j in np.argwhere(whole).tolist():
        scores[row, j] = score(questions[row], tuple(responses[row][j]))
    chosen = select_samples(run, step, questions, scores)
    return update_memory(
        memory,
        questions,
        [float(scores[row, j]) for row, j in enumerate(chosen)],
        [responses[row][j] for row, j in enumerate(chosen)],
    )
