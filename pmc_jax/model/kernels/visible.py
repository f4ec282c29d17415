"""Which cache positions a decode kernel reads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def visible_ranges(
    prefix_mask: Bool[Array, "batch prompt"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None,
) -> Int[Array, "batch 4"]:
    """For each prompt: the layer, the first visible position of prompt and of suffix, the step.

    Prompts are padded on the left, so that every position after the first visible one is visible.
    """
    prompt = prefix_mask.shape[1]
    first_of_prompt = prompt - prefix_mask.sum(axis=1)
    first_of_suffix = jnp.zeros_like(step)
    if window is not None:
        # Relative to the suffix; negative within the prompt.
        furthest = jnp.where(window > 0, step - window + 1, -prompt)
        first_of_prompt = jnp.clip(prompt + furthest, first_of_prompt, prompt)
        first_of_suffix = jnp.maximum(furthest, 0)
    columns = (layer, first_of_prompt, first_of_suffix, step)
    rows = [jnp.broadcast_to(x, len(prefix_mask)).astype(jnp.int32) for x in columns]
    return jnp.stack(rows, axis=1)
