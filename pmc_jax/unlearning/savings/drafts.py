"""What the samples of a question are likely to begin with (`decoding.drafts`)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pmc_jax.unlearning.method import Run, Tokens

DRAFTS = 2
"""The most drafts of a question."""


@lru_cache(maxsize=2**12)
def _answer_tokens(encode: Callable[[str], list[int]], answer: str) -> Tokens:
    return tuple(encode(answer))


def original_tokens(run: Run[Any], question: int) -> Tokens:
    """y0(q) as tokens, as its text is encoded."""
    original = run.prepared["originals"][question]
    return _answer_tokens(run.task.model.template.encode_answer, original)


def longest_read(run: Run[Any]) -> int:
    """The most tokens that sampling reads at once: the longest prompt, with y0 if it is a draft."""
    prompts, training = run.task.prompts, run.task.training
    if run.forced:
        return training.max_length
    if not training.drafts:
        return max(map(len, prompts))
    return max(len(prompt) + len(original_tokens(run, i)) for i, prompt in enumerate(prompts))


def drafts(
    run: Run[Any], questions: Sequence[int], remembered: Callable[[int], Tokens]
) -> list[list[Tokens]] | None:
    """What samples may begin with: y0, and the response that training makes more likely.

    Both are known from the state of the run alone. None without `training.drafts`, and after a
    forced beginning.

    Args:
        remembered: the remembered response to a question; empty if there is none.
    """
    if run.forced or not run.task.training.drafts:
        return None
    longest = longest_read(run)

    def of(question: int) -> list[Tokens]:
        found = [original_tokens(run, question)]
        if response := remembered(question):
            found.append(tuple(response))
        return [draft[: longest - len(run.task.prompts[question])] for draft in found]

    return [of(question) for question in questions]
