"""The norms of an answer's gradients, for membership inference.

A model that was trained on an answer has little to learn from it, so that its gradients are small
(Nasr et al. 2019; for language models Wang et al. 2024, arXiv 2402.17012).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.data.batches import loss_rows
from pmc_jax.evaluation.likelihood import Pair
from pmc_jax.language_model import LanguageModel, Leaves
from pmc_jax.model import (
    ModelConfig,
    constrain_params,
    param_specs,
    stacked,
    to_devices,
    to_host,
)
from pmc_jax.model.buckets import bucket_length
from pmc_jax.model.sequences import sequence_nll
from pmc_jax.model.specs import Params


def mean_tensor_norm(gradients: Params, tensors: Sequence[Leaves]) -> Float[Array, ""]:
    """The mean over weight tensors of the Euclidean norm, in at least fp32.

    A leaf below "layers" holds one tensor for each layer.
    """
    squares = {}
    for path, leaf in flatten_dict(gradients).items():
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        axes = tuple(range(path[0] == "layers", leaf.ndim))
        squares[path] = jnp.sum(wide**2, axis=axes)
    norms = [jnp.sqrt(sum(squares[path] for path in leaves)).reshape(-1) for leaves in tensors]
    return jnp.concatenate(norms).mean()


@partial(jax.jit, static_argnames=("cfg", "dtype", "tensors"))
def gradient_norm(
    params: Params,
    tokens: Int[Array, "1 time"],
    mask: Bool[Array, "1 time"],
    loss_mask: Bool[Array, "1 time"],
    *,
    cfg: ModelConfig,
    dtype: DTypeLike,
    tensors: tuple[Leaves, ...],
) -> Float[Array, ""]:
    """`mean_tensor_norm` of the gradients of the mean NLL over the tokens in `loss_mask`.

    0 without such a token. Gradients are in the dtype of the weights.
    """

    def loss(params: Params) -> Float[Array, ""]:
        nll = sequence_nll(params, tokens, mask.astype(jnp.int32), cfg, dtype, "none")
        return jnp.where(loss_mask, nll, 0).sum() / loss_mask.sum().clip(1)

    return mean_tensor_norm(constrain_params(jax.grad(loss)(params), param_specs(cfg)), tensors)


def gradient_norms(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " pairs"]:
    """The norm of the gradients of the mean NLL of each answer without its end token.

    It is the mean over the tensors of a Hugging Face checkpoint of their Euclidean norms, as in
    OpenUnlearning. Pairs are taken one by one: memory holds the gradients of one. One function is
    compiled for each bucket of lengths. `on_batch` is called with (pairs done, tokens).
    """
    params, tensors = stacked(model.params, model.config), model.tensor_leaves
    found = []
    for prompt, answer in pairs:
        length = len(prompt) + len(answer)
        tokens, mask, loss_mask = loss_rows([prompt], [answer], bucket_length(length))
        loss_mask[:, length - 1] = False
        arrays = (to_devices(array) for array in (tokens, mask, loss_mask))
        norm = gradient_norm(params, *arrays, cfg=model.config, dtype=model.dtype, tensors=tensors)
        found.append(float(to_host(norm)))
        if on_batch:
            on_batch(1, len(answer))
    return np.array(found)
