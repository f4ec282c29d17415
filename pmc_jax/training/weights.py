"""The two trees of a run's weights: what is trained, and what a step reads beside it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from pmc_jax.language_model import LanguageModel
from pmc_jax.model.products import is_quantised
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import Trainable

ADAPTER_STREAM = 4
"""The stream of random numbers that adapters begin with."""


def is_cast(frozen: Mapping[str, Any], dtype: DTypeLike) -> bool:
    """Whether some of the base's matrices are neither in `dtype` nor quantised.

    True if there is no base.
    """
    leaves = jax.tree.leaves(frozen.get("base", {}), is_leaf=is_quantised)
    matrices = [leaf for leaf in leaves if leaf.ndim > 2]
    kept = (jnp.dtype(dtype), jnp.dtype("int8"))
    return any(leaf.dtype not in kept for leaf in matrices) or not matrices


def split_weights(
    model: LanguageModel,
    params: Params,
    part: Trainable | None,
    key: PRNGKeyArray,
    *,
    donate: bool,
) -> tuple[Params, dict[str, Any]]:
    """What is trained of the weights `params` of a model, and the rest for `frozen`.

    The rest are the "base" and, if the run starts from an adapter, this adapter as "start".

    Args:
        key: for the random part of a new adapter.
        donate: whether `params` may be deleted. Otherwise weights that are trained are copied.

    Raises:
        UserError: if the adapter to start from does not fit.
    """
    if part is None:
        return params if donate else jax.tree.map(jnp.copy, params), {}
    trained, base = part.split(params, model.dtype, donate=donate)
    if part.adapter is None:
        return trained, {"base": base}
    if part.adapter.path is None:
        return part.initial(key, model.weights_dtype), {"base": base}
    start = model.read_adapter(part)
    return jax.tree.map(jnp.copy, start), {"base": base, "start": start}
