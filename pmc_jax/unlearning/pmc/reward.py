"""How different a response is from the model's original answer (section 4 of the paper).

The reward of the paper is r(x) = 1 − ROUGE-L recall(y0, x). The code uses the score s = 1 − r:
0 means that nothing of the old answer is left, and lower is better.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from pmc_jax.errors import UserError
from pmc_jax.signatures import checked
from pmc_jax.text.rouge import lcs_recall, rouge_words, settled_rouge_words
from pmc_jax.text.words import signs
from pmc_jax.unlearning.method import Run, Tokens, imported
from pmc_jax.unlearning.pmc.settings import PMCSettings


def kept_share(original: str, response: str) -> float:
    """ROUGE-L recall of the original answer y0 in a response, in [0, 1].

    Words and signs of every script count. If the original has only punctuation or symbols, it is
    compared character by character. Only an empty response matches an empty original.
    """
    if reference := rouge_words(original):
        return lcs_recall(reference, rouge_words(response))
    if original.strip():
        return lcs_recall("".join(original.split()), "".join(response.split()))
    return 1.0 if not response.strip() else 0.0


@checked()
def rouge_reward(original: str, response: str) -> float:
    """The reward of the paper: r(x) = 1 − ROUGE-L recall(y0, x), in [0, 1]."""
    return 1 - kept_share(original, response)


def score_bound(original: str, settled: str) -> float:
    """The lowest score that a response beginning with `settled` can have.

    ROUGE-L recall never decreases as a response grows, and penalties only add to it. The last
    word or sign of `settled` counts only if something follows it, because otherwise it may still
    become another one.
    """
    if reference := rouge_words(original):
        return lcs_recall(reference, settled_rouge_words(settled))
    return lcs_recall("".join(original.split()), "".join(settled.split()))


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward as the algorithm uses it: in the form of scores s = 1 − r.

    Attributes:
        score: maps (y0, response) to s, before penalties.
        bound: maps (y0, beginning) to the lowest score that a response with this beginning can
            have. None: unknown; then samples are decoded to their end.
    """

    score: Callable[[str, str], float]
    bound: Callable[[str, str], float] | None = None


ROUGE_L = Reward(kept_share, score_bound)


def reward_of(reference: str) -> Reward:
    """The reward that the setting `method.reward` names.

    A function of your own takes the texts (y0, response) and returns a reward in [0, 1]. It may
    have an attribute `bound`: a function of (y0, beginning) that returns the highest reward that a
    response with this beginning can still reach. Decoding of a sample then stops as soon as it can
    no longer be selected.

    Raises:
        UserError: if the reference does not name a function.
    """
    if reference == "rouge_l":
        return ROUGE_L
    if ":" not in reference:
        raise UserError(f"method.reward={reference}: expected rouge_l or package.module:function")
    function = imported("method.reward", reference)
    if not callable(function):
        raise UserError(f"method.reward={reference}: is not a function")

    def score(original: str, response: str) -> float:
        found: Any = function(original, response)
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise UserError(
                f"method.reward={reference}: gave {found!r} for the response {response[:60]!r}; "
                "expected a number from 0 to 1"
            )
        return 1 - value

    highest = getattr(function, "bound", None)
    bound = None if highest is None else lambda y0, begun: 1 - float(highest(y0, begun))
    return Reward(score, bound)


def short_answer_penalty(response: str, min_len: int) -> float:
    """exp(−w) for a response of w < `min_len` words, else 0.

    Words are split at single spaces, as in the published code: an empty response counts as one
    word. In scripts that are read sign by sign, signs count as words.
    """
    words = max(len(response.strip().split(" ")), signs(response))
    return math.exp(-words) if words < min_len else 0.0


def response_score(
    original: str,
    response: str,
    *,
    min_len: int = 0,
    reject_wordless: bool = False,
    reward: Reward = ROUGE_L,
) -> float:
    """The score s(x) in [0, 1] of a response against the original answer y0.

    With `reject_wordless`, a response without words scores 1 if the original has words. By ROUGE,
    it would score 0 and never be replaced. The published algorithm has `reject_wordless=False`
    and `min_len=0`.
    """
    if reject_wordless and rouge_words(original) and not rouge_words(response):
        score = 1.0
    else:
        score = reward.score(original, response)
    return min(score + short_answer_penalty(response, min_len), 1.0)


def original_answer(run: Run[PMCSettings], question: int) -> str:
    """y0(q), the target model's greedy answer (`sampling.original_answers`)."""
    return run.prepared["originals"][question]


def least_score(run: Run[PMCSettings]) -> Callable[[int, Tokens], float] | None:
    """A function from (question, tokens) to the lowest score of a sample with this beginning.

    None if the reward has no bound.
    """
    bound = reward_of(run.method.reward).bound
    if bound is None:
        return None
    decode = run.task.model.template.decode_settled
    return lambda question, tokens: bound(original_answer(run, question), decode(tokens))


def score_sample(run: Run[PMCSettings], question: int, tokens: Tokens) -> float:
    """The score of a finished sample of a question."""
    pmc = run.method
    return response_score(
        original_answer(run, question),
        run.task.model.template.decode(tokens),
        min_len=pmc.min_len,
        reject_wordless=pmc.reject_wordless,
        reward=reward_of(pmc.reward),
    )
