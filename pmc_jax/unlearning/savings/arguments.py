"""The savings as arguments of `decoding.generate`."""

from collections.abc import Callable, Sequence
from typing import Any

from pmc_jax.unlearning.method import Run, Tokens
from pmc_jax.unlearning.savings.drafts import drafts, longest_read
from pmc_jax.unlearning.savings.pruning import Scoring, pruning
from pmc_jax.unlearning.savings.shapes import questions_at_once


def savings(
    run: Run[Any],
    questions: Sequence[int],
    scoring: Scoring | None,
    remembered: Callable[[int], Tokens],
) -> dict[str, Any]:
    """The arguments of `generate` that only save work.

    Args:
        scoring: what decides which samples can still be selected; None if selection is random.
        remembered: the response to a question that training makes more likely; empty if there is
            none yet.
    """
    training = run.task.training
    return {
        "longest_prompt": longest_read(run),
        "decode_batch": questions_at_once(run) * run.method.samples,
        "decoding": training.decoding,
        "wave": training.wave,
        "prune": pruning(training, questions, scoring),
        "drafts": drafts(run, questions, remembered),
    }
