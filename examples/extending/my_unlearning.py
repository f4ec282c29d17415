"""A method and a reward of your own, outside the package. `docs/extending.md` explains them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pmc_jax.model import ModelConfig
from pmc_jax.settings import bounded
from pmc_jax.unlearning.losses import Targets, TokenLoss, token_mean
from pmc_jax.unlearning.method import BaselineMethod


def uniform_cross_entropy(
    logits: Float[Array, "*positions vocab"], tokens: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """−(1/V) Σ_v log p(v). It is least if the model gives all V tokens the same probability."""
    return -jnp.mean(jax.nn.log_softmax(logits), axis=-1)


@dataclasses.dataclass(frozen=True)
class MaximumEntropy(BaselineMethod):
    """Train forget answers towards the uniform distribution, and retain other answers.

    Attributes:
        strength: the weight of the forget loss.
    """

    name: str = "maximum_entropy"
    strength: float = bounded(1.0, above=0)

    sentence: ClassVar[str] = (
        "to be indifferent between all tokens at the answers to be forgotten, and on answers to "
        "keep."
    )

    def token_losses(self, config: ModelConfig) -> dict[str, TokenLoss]:
        """The loss of a forget token is the cross-entropy to the uniform distribution."""
        return {**super().token_losses(config), "forget": TokenLoss(uniform_cross_entropy)}

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The mean over the tokens of forget answers."""
        return self.strength * token_mean(forget)


def names_in(text: str) -> set[str]:
    """Words with a capital letter: a rough guess at the names."""
    words = (word.strip(".,;:!?'\"") for word in text.split())
    return {word for word in words if word[:1].isupper()}


def forgotten_names(original: str, response: str) -> float:
    """A reward for PMC: the share of the original answer's names that a response leaves out."""
    names = names_in(original)
    return len(names - names_in(response)) / len(names) if names else 1.0


def most_forgotten_names(original: str, beginning: str) -> float:
    """The highest reward that a response with this beginning can still reach.

    The last word may be incomplete, so it does not count.
    """
    return forgotten_names(original, beginning.rpartition(" ")[0])


forgotten_names.bound = most_forgotten_names  # type: ignore[attr-defined]
