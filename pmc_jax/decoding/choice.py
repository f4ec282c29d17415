"""How the next token of a response is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pmc_jax.decoding.draw import draw_checked, greedy


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature, then top-k, then top-p; temperature 0 is greedy.

    A token of `stop_ids` ends a response and is part of it. The first `min_new_tokens` tokens are
    never stop tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


def choose(
    logits: Float[Array, "*batch vocab"],
    keys: Key[Array, "*rows"],
    index: Int[Array, "..."],
    sampling: Sampling,
    temperature: Float[Array, ""] | None = None,
) -> tuple[Int[Array, "*rows"], Bool[Array, "*rows"]]:
    """Choose token number `index` of every row's response, drawn with the row's own key.

    `index` is one number for all rows, or has all axes of `logits` except the last. The second
    result says where the logits are not finite (`draw_checked`).

    If `keys` has more batch axes than `logits`, rows along these axes share their logits.
    `temperature` replaces the temperature of `sampling` in functions that are compiled once for
    all temperatures.
    """
    if sampling.stop_ids and sampling.min_new_tokens:
        stops = jnp.asarray(sampling.stop_ids)
        early = jnp.expand_dims(index < sampling.min_new_tokens, -1)
        held = jnp.where(early, -jnp.inf, logits[..., stops])
        logits = logits.at[..., stops].set(held)

    def to_rows(found: Array) -> Array:
        return jnp.broadcast_to(
            found.reshape(*found.shape, *[1] * (keys.ndim - found.ndim)), keys.shape
        )

    if sampling.temperature == 0:
        # `greedy` takes the same maximum, which XLA computes once.
        return to_rows(greedy(logits)), to_rows(~jnp.isfinite(logits.max(-1)))
    numbers = to_rows(index).reshape(-1)
    token_keys = jax.vmap(jax.random.fold_in)(keys.reshape(-1), numbers)
    chosen, highest = draw_checked(
        token_keys.reshape(keys.shape), logits, sampling.top_k, sampling.top_p,
        sampling.temperature if temperature is None else temperature,
    )  # fmt: skip
    return chosen, to_rows(~jnp.isfinite(highest))
