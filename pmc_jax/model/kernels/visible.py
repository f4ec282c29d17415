"""Which cache positions a decode kernel reads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def visible_ranges(
    prefix_mask: Bool[Array, "batch prompt"],
    layer: Int[Array, ""],
    step: Int[Array, ""],
    window: Int[Array, ""] | None,
    unused: Int[Array, "batch samples"],
) -> Int[Array, "batch samples 5"]:
    """For each sample: the layer, its visible positions, and the step.

    The visible positions are the first one of the prompt, the end of these, and the first one of
    the suffix. Prompts are padded on the left, so that all positions between them are visible. The
    last `unused` ones of the prompt are not.
    """
    prompt = prefix_mask.shape[1]
    end_of_prompt = jnp.clip(prompt - unused, 0, prompt)
    first_of_prompt = (prompt - prefix_mask.sum(axis=1))[:, None]
    first_of_suffix = jnp.zeros_like(step)
    if window is not None:
        # Relative to the suffix; negative within the prompt.
        furthest = jnp.where(window > 0, step - window + 1, -prompt)
        first_of_prompt = jnp.maximum(first_of_prompt, end_of_prompt + furthest)
        first_of_suffix = jnp.maximum(furthest, 0)
    first_of_prompt = jnp.minimum(first_of_prompt, end_of_prompt)
    columns = (layer, first_of_prompt, end_of_prompt, first_of_suffix, step)
    rows = [jnp.broadcast_to(x, unused.shape).astype(jnp.int32) for x in columns]
    return jnp.stack(rows, axis=-1)
