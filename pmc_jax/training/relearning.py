"""Fine-tuning an unlearned model again, to see how easily what is gone comes back."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import DTypeLike

from pmc_jax.data.batches import loss_rows
from pmc_jax.model import ModelConfig, to_devices
from pmc_jax.model.buckets import bucket_length
from pmc_jax.model.specs import Params
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.unlearning.objective import LossRows

Pair = tuple[Sequence[int], Sequence[int]]


def batch_rows(pairs: Sequence[Pair], order: np.ndarray, length: int) -> LossRows:
    """The chosen pairs as one micro-batch `[1, rows, length]` with loss on answers only."""
    chosen = [pairs[i] for i in order]
    prompts, answers = zip(*chosen, strict=True)
    ids, mask, targets = loss_rows(prompts, answers, length)
    tokens, segments, loss_mask = (
        to_devices(x[None], None, "batch", None) for x in (ids, mask.astype(np.int32), targets)
    )
    return LossRows(tokens, segments, loss_mask, retain=loss_mask)


def relearn(
    params: Params,
    pairs: Sequence[Pair],
    steps: Sequence[int],
    *,
    model: ModelConfig,
    batch_size: int,
    learning_rate: float,
    seed: int,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> Iterator[tuple[int, Params]]:
    """Weights after each number of optimizer steps in `steps`, which must rise.

    AdamW at a constant learning rate on the mean NLL of the pairs' answers; every pass
    over the pairs has its own order, and a batch may hold the end of one and the start of
    the next. The weights of an earlier number are gone once the next are asked for; those
    passed in stay.
    """
    cfg = Optimizer(learning_rate=learning_rate, schedule="constant", weight_decay=0.0)
    optimizer = make_optimizer(cfg, model, optax.constant_schedule(learning_rate))
    train_step = make_train_step(optimizer, model, retain_weight=1.0, dtype=dtype, remat=remat)
    length = bucket_length(max(len(prompt) + len(answer) for prompt, answer in pairs))
    order = np.empty(0, np.int64)
    rng = np.random.default_rng(seed)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    done = 0
    for wanted in steps:
        for _ in range(wanted - done):
            while len(order) < batch_size:
                order = np.concatenate([order, rng.permutation(len(pairs))])
            now, order = order[:batch_size], order[batch_size:]
            state, _, _ = train_step(state, batch_rows(pairs, now, length))
        done = wanted
        yield done, state.params
