"""Retain pairs that the target model writes itself: `training.rehearsal`, not in the paper.

Retain pairs keep what resembles them. What a model says beyond them can still change: on other
topics it may refuse, or forget. Before the first step, the target model therefore asks questions,
and answers them, and these pairs are added to the retain pairs. Half of the questions are sampled
from the beginning of a prompt, the others after the first words of a question of the data set,
which lead to questions of the same kind about something else. This is pseudo-rehearsal (Robins
1995), with questions sampled as by Magpie (arXiv 2406.08464).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from pmc_jax.data.checks import question_key
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.model import decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.runtime.progress import warn
from pmc_jax.text.facts import background_of, facts_of
from pmc_jax.text.kinds import kind_of
from pmc_jax.text.words import words_of
from pmc_jax.unlearning.method import Example, Examples, Task, Tokens

STREAM = 5
"""The stream of random numbers that questions are sampled with."""

ASKING = Sampling(temperature=1.0, top_p=0.9)
OPENING_WORDS = 4
"""The most words of a question of the data set that a question begins with."""

QUESTION_TOKENS, ANSWER_TOKENS = 48, 64
"""The most tokens of a question and of an answer; longer ones are left out."""

ROUNDS = 4
"""The most rounds; each samples as many questions as are wanted."""

SENTENCE = (
    "It was also trained on questions and answers that it wrote itself before; these were not "
    "compared with the answers to be forgotten."
)
"""For the report, after the method's sentence."""

Pair = Sequence[str]
"""A question and its answer."""


def rehearsal_pairs(task: Task, params: Params, retain: Sequence[Example]) -> list[Pair]:
    """`task.training.rehearsal` questions of the target model, each with its greedy answer.

    Fewer, with a warning, if not enough questions are answered without a name from the forget
    questions. Prompts are those without a row's own system prompt.

    Args:
        params: the target model's weights.
        retain: the retain pairs.

    Raises:
        UserError: if there is none, or nothing precedes the question in a prompt.
    """
    wanted, template = task.training.rehearsal, task.model.template
    if not template.encode_opening():
        raise UserError(
            f"training.rehearsal={wanted}: a prompt has no text before its question to sample "
            "from; expected a chat template, or prompt.question with such a text"
        )
    decoded = [template.decode_question(pair.prompt) for pair in retain]
    known = [question for question in decoded if question]
    forget = [question.question for question in task.questions]
    avoided = names_in(forget, known)
    seen = {question_key(question) for question in known}
    found: list[Pair] = []
    for number in range(ROUNDS):
        asked = []
        begun = openings(task, [*forget, *known], avoided, number)
        for question in sampled_questions(task, params, begun, number):
            if question_key(question) not in seen and not avoided & {*words_of(question)}:
                seen.add(question_key(question))
                asked.append(question)
        answers = answers_to(task, params, asked)
        found += [
            (question, answer)
            for question, answer in zip(asked, answers, strict=True)
            if answer is not None and kind_of(answer) == "answer"
            and not avoided & {*words_of(answer)}
        ]  # fmt: skip
        if len(found) >= wanted:
            break
    if not found:
        raise UserError(
            f"training.rehearsal={wanted}: {task.model.directory} asks no questions that it "
            f"answers within training.max_length={task.training.max_length} tokens; expected a "
            "model that can, or 0"
        )
    if len(found) < wanted:
        warn([f"training.rehearsal={wanted}: the model wrote only {len(found)} usable pairs"])
    return found[:wanted]


def names_in(questions: Sequence[str], others: Iterable[str]) -> frozenset[str]:
    """The names and numbers in the forget questions that retain questions do not have.

    Of a question without any, all its words that no retain question has.
    """
    background = background_of(questions, others)
    found = [facts_of(text, "", background) for text in questions]
    return frozenset().union(
        *((own.names or {*own.words} - background.kept) | own.perhaps_names for own in found)
    )


def openings(
    task: Task, questions: Sequence[str], avoided: frozenset[str], number: int
) -> list[str]:
    """What each question of a round begins with: nothing, or the first words of a question.

    Of a question of the data set, at most `OPENING_WORDS` words, up to the first of `avoided`.
    """
    draw = np.random.default_rng([task.seed, STREAM, number])
    drawn = draw.integers(0, len(questions), task.training.rehearsal)
    counts = draw.integers(1, OPENING_WORDS + 1, task.training.rehearsal)
    found = []
    for place, (i, count) in enumerate(zip(drawn, counts, strict=True)):
        words = questions[i].split()[:count] if place % 2 else []
        kept = itertools.takewhile(lambda word: not avoided & {*words_of(word)}, words)
        found.append(" ".join(kept))
    return found


def sampled_questions(task: Task, params: Params, begun: Sequence[str], number: int) -> list[str]:
    """Questions that the model samples with these first words; those that come to an end."""
    template = task.model.template
    prompts = [template.encode_opening(words) for words in begun]
    responses = responses_to(task, params, prompts, ASKING, QUESTION_TOKENS, number)
    ids = [[*prompt, *own] for prompt, own in zip(prompts, responses, strict=True)]
    found = [template.decode_question(own) for own in ids]
    return [question for question in found if question and words_of(question)]


def answers_to(task: Task, params: Params, questions: Sequence[str]) -> list[str | None]:
    """The model's greedy answers; None where one does not end within its limit."""
    template = task.model.template
    prompts = [template.encode_prompt(question) for question in questions]
    greedy = Sampling(temperature=0.0)
    responses = responses_to(task, params, prompts, greedy, ANSWER_TOKENS, 0)
    ended = [response[-1:] and response[-1] in template.stop_ids for response in responses]
    return [
        template.decode(response) if whole else None
        for response, whole in zip(responses, ended, strict=True)
    ]


def responses_to(
    task: Task,
    params: Params,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    limit: int,
    step: int,
) -> list[list[int]]:
    """One response to each prompt, of as many tokens as `training.max_length` leaves."""
    model, most = task.model, task.training.max_length
    kept = [prompt for prompt in prompts if len(prompt) + 2 <= most]
    found = iter(
        generate(
            decoding_params(params, model.config, model.dtype),
            kept,
            cfg=model.config,
            sampling=dataclasses.replace(sampling, stop_ids=model.template.stop_ids),
            key=task.key(STREAM),
            limits=[min(limit, most - len(prompt) - 1) for prompt in kept],
            step=step,
            decode_batch=task.training.decode_batch,
            dtype=model.dtype,
        )
        if kept
        else []
    )
    return [next(found)[0] if len(prompt) + 2 <= most else [] for prompt in prompts]


def with_rehearsal(task: Task, examples: Examples, pairs: Sequence[Pair]) -> Examples:
    """The examples with these pairs among the retain pairs."""
    encoded = [Example(*task.model.template.encode_pair(*pair)) for pair in pairs]
    return dataclasses.replace(examples, retain=[*examples.retain, *encoded])
