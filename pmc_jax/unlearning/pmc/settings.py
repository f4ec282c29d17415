"""The settings of PMC."""

import dataclasses
from typing import Any, ClassVar

from pmc_jax.errors import UserError
from pmc_jax.settings import bounded
from pmc_jax.unlearning.method import RetainingMethod


@dataclasses.dataclass(frozen=True)
class PMCSettings(RetainingMethod):
    """Settings of PMC: sampling, selection and the retain loss.

    The published values are in `configs/settings/tofu_phi_1_5/pmc.yaml` and
    `configs/settings/tofu_llama3_2_3b/pmc.yaml` (section 5 and appendix of the paper).

    Attributes:
        retain_weight: λ, the weight of the retain loss.
        retain_per_forget: retain pairs in a step for each forget question.
        retain_loss: "nll": the NLL of the retain answers, as in the paper; "kl": the divergence
            from the target model at their tokens.
        samples: n, responses drawn per question and visit.
        temperature: sampling temperature.
        top_k: sample among the k most likely tokens; 0: all.
        top_p: then sample among the most likely tokens with this total probability; 1: all.
        max_new_tokens: longest response; null: what `training.max_length` leaves.
        reward: "rouge_l", as in the paper, or your own `package.module:function`.
        selection_temperature: τ of Bradley–Terry selection; 0 takes the best sample.
        min_len: a response with fewer words is penalised by exp(−words); 0, as published: none.
        reject_wordless: a response without any word scores 1, so that it is never the best. Not in
            the paper; false for the published algorithm.
        final_temperature: sampling temperature at the last step, reached linearly; null:
            `temperature` in all steps. Not in the paper.
        final_retain_weight: λ at the last step, reached linearly; null: `retain_weight` in all
            steps. Not in the paper.
        keep_sampling: sample every question at every visit; the paper stops once a response
            scores 0. Not in the paper.
        beginnings: how many times a visit also forces the responses to a question to begin with
            the first words of the model's original answer, and trains on the best one; half of
            these beginnings end before a fact word. Not in the paper.
        offer_refusals: add a refusal to the samples of every selection: one of the data set's, or
            "I don't know." Not in the paper.
    """

    name: str = "pmc"
    samples: int = bounded(5, least=1, most=2**16)
    temperature: float = bounded(1.0, above=0)
    top_k: int = bounded(0, least=0)
    top_p: float = bounded(1.0, above=0, most=1)
    max_new_tokens: int | None = bounded(None, least=1)
    reward: Any = "rouge_l"
    selection_temperature: float = bounded(0.0, least=0)
    min_len: int = bounded(2, least=0)
    reject_wordless: bool = True
    final_temperature: float | None = bounded(None, above=0)
    final_retain_weight: float | None = bounded(None, least=0)
    keep_sampling: bool = False
    beginnings: int = bounded(0, least=0, most=2**6)
    offer_refusals: bool = False

    sentence: ClassVar[str] = (
        "on its own selected answers to the questions it should forget. The answers to be "
        "forgotten were never a training target."
    )

    def __post_init__(self) -> None:
        """Replace a reward function by its `module:name`, so that settings stay plain data."""
        function: Any = self.reward
        if callable(function):
            name = getattr(function, "__qualname__", "")
            if not name.isidentifier():
                raise UserError(
                    "method.reward: expected a function at the top level of a module; a lambda, a "
                    "nested function or a method cannot be found again when a run continues"
                )
            object.__setattr__(self, "reward", f"{function.__module__}:{name}")
