"""Partial Model Collapse (PMC): the paper, arXiv 2507.04219, section 4.

Minimise, over the weights θ,

    E_{q ∈ forget, x̂ = select(x_1, …, x_n ~ p_θ(· | q))} [−log p_θ(x̂ | q)]
    + λ E_{(q, y) ∈ retain} [−log p_θ(y | q)]

Read the modules in this order:

1. `settings`:  n, the temperature, λ, …
2. `reward`:    r(x) = 1 − ROUGE-L recall(y0, x), and the score s = 1 − r
3. `selection`: Bradley–Terry among n samples; its limit τ → 0 takes the best
4. `memory`:    the best response to every question so far
5. `objective`: the two expectations
6. `sampling`:  y0, and n samples of each question from the current weights
7. `step`:      Algorithm 1: sample, score, remember, train

`settings` says which options the paper does not have. They are off by default, except
`reject_wordless`, which guards against answers without words. With `reject_wordless=False` and
`min_len=0`, this is the published algorithm. Code that only saves time is in `unlearning/savings/`.
It changes no selected response, except by rounding.
"""

from pmc_jax.unlearning.pmc.memory import (
    ResponseMemory,
    empty_memory,
    needs_sampling,
    update_memory,
)
from pmc_jax.unlearning.pmc.objective import pmc_loss
from pmc_jax.unlearning.pmc.reward import (
    Reward,
    response_score,
    rouge_reward,
    score_bound,
    short_answer_penalty,
)
from pmc_jax.unlearning.pmc.selection import select, selection_keys
from pmc_jax.unlearning.pmc.settings import PMCSettings
from pmc_jax.unlearning.pmc.step import PMC

__all__ = [
    "PMC",
    "PMCSettings",
    "ResponseMemory",
    "Reward",
    "empty_memory",
    "needs_sampling",
    "pmc_loss",
    "response_score",
    "rouge_reward",
    "score_bound",
    "select",
    "selection_keys",
    "short_answer_penalty",
    "update_memory",
]
