"""What methods need of the frozen target model: copies of its weights, and N_ref."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, DTypeLike, Float

from pmc_jax.data.batches import train_sequence
from pmc_jax.data.packing import Pair, packed, row_width
from pmc_jax.language_model import LanguageModel
from pmc_jax.model import ModelConfig, batch_shards, constrain, to_devices, to_host
from pmc_jax.model.sequences import sequence_nll
from pmc_jax.model.specs import Params, Spec
from pmc_jax.model.trainable import Trainable, trained_specs
from pmc_jax.unlearning.losses import segment_sums
from pmc_jax.unlearning.schedule import Training


@partial(jax.jit, static_argnames=("cfg", "dtype", "part"))
def frozen_params(
    params: Params, cfg: ModelConfig, dtype: DTypeLike, part: Trainable | None = None
) -> Params:
    """A copy of all or some weights that lasts through training, sharded as they are.

    Matrices are in `dtype`, to which every matrix product would cast them anyway. The weights
    are laid out as `part` says.
    """

    def copy(leaf: Array, spec: Spec) -> Array:
        leaf = leaf.astype(dtype) if spec.init == "normal" else leaf
        return constrain(jnp.copy(leaf), *spec.axes)

    specs, leaves = flatten_dict(trained_specs(cfg, part)), flatten_dict(params)
    return unflatten_dict({path: copy(leaf, specs[path]) for path, leaf in leaves.items()})


def overlaid(params: Params, some: Params) -> Params:
    """`params` with the leaves that `some` has in their place."""
    return unflatten_dict({**flatten_dict(params, keep_empty_nodes=True), **flatten_dict(some)})


def reference_nll(
    params: Params, pairs: Sequence[Pair], *, model: LanguageModel, training: Training
) -> Float[np.ndarray, " pairs"]:
    """N_ref: the summed NLL of every answer under `params`, cut as training cuts it."""
    size, template = training.part_size, model.template

    @jax.jit
    def summed(params: Params, tokens: Array, segments: Array, loss_mask: Array) -> Array:
        nll = sequence_nll(params, tokens, segments, model.config, model.dtype, model.remat)
        return segment_sums(jnp.where(loss_mask, nll, 0), segments, size)

    found = []
    for first in range(0, len(pairs), size):
        sequences = [
            train_sequence(prompt, answer, template.end_id, training.max_length, template.stop_ids)
            for prompt, answer in pairs[first : first + size]
        ]
        width = row_width([len(p) + len(a) for p, a in sequences], training.max_length)
        rows = packed([dict(enumerate(sequences, 1))], width, batch_shards())
        arrays = (to_devices(array[0], "batch", None) for array in rows)
        found.append(to_host(summed(params, *arrays))[: len(sequences)])
    empty = np.zeros(0, jnp.promote_types(model.dtype, jnp.float32))
    return np.concatenate(found) if found else empty
