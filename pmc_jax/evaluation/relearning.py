"""Fine-tuning an unlearned model again, to see how easily it recovers what it forgot."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax

from pmc_jax.errors import UserError
from pmc_jax.evaluation.context import Relearn, RobustnessConfig
from pmc_jax.evaluation.likelihood import Pair
from pmc_jax.language_model import LanguageModel
from pmc_jax.model.buckets import bucket_length
from pmc_jax.model.trainable import LoRA, dtypes_of, trainable
from pmc_jax.training.batch import pair_batch
from pmc_jax.training.loop import all_finite
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.training.weights import split_weights
from pmc_jax.unlearning.baselines.finetune import FineTune


def relearn(
    model: LanguageModel,
    pairs: Sequence[Pair],
    steps: Sequence[int],
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    adapter: LoRA | None = None,
) -> Iterator[tuple[int, LanguageModel]]:
    """Yield the model after each number of optimizer steps in `steps`, which must increase.

    AdamW with a constant learning rate minimises the mean NLL of the pairs' answers. Every
    pass over the pairs has its own order. A batch may contain the end of one pass and the start
    of the next.

    With an `adapter`, only the adapter is trained. The weights of `model` are kept. Each yielded
    model loses its weights when the next one is requested.

    Raises:
        UserError: if a weight is no longer finite.
    """
    config = Optimizer(learning_rate=learning_rate, schedule="constant", weight_decay=0.0)
    schedule = optax.constant_schedule(learning_rate)
    part = trainable(model.config, adapter=adapter)
    optimizer = make_optimizer(config, model.config, schedule, part=part)
    train_step = make_train_step(
        optimizer, FineTune(), model.config, dtype=model.dtype, remat=model.remat, part=part
    )
    params = model.params
    if part is None:  # those of the files may be too narrow to train
        params = jax.tree.map(lambda leaf: leaf.astype(model.weights_dtype), params)
    trained, frozen = split_weights(model, params, part, jax.random.key(seed), donate=False)
    length = bucket_length(max(len(prompt) + len(answer) for prompt, answer in pairs))
    order = np.empty(0, np.int64)
    rng = np.random.default_rng(seed)
    state = init_state(trained, optimizer)
    done = 0
    for wanted in steps:
        for _ in range(wanted - done):
            while len(order) < batch_size:
                order = np.concatenate([order, rng.permutation(len(pairs))])
            now, order = order[:batch_size], order[batch_size:]
            batch = pair_batch([pairs[i] for i in now], length, model.weights_dtype)
            state, _, _ = train_step(state, batch, 0.0, frozen)
        done = wanted
        if not all_finite(state.params):
            raise UserError(
                f"relearning: a weight is not finite after {done} steps; try a lower "
                "robustness.learning_rate"
            )
        yield done, model.with_params(
            state.params if part is None
            else part.whole(state.params, frozen["base"], dtypes_of(model.params), donate=False)
        )  # fmt: skip


def relearner(
    load: Callable[[], LanguageModel],
    config: RobustnessConfig,
    seed: int,
    adapter: LoRA | None = None,
) -> Relearn:
    """`relearn` for an evaluation: it fine-tunes what `load` returns.

    The model under evaluation has its weights laid out for decoding, which cannot be trained;
    `load` returns the same model with weights for training.
    """

    def go(pairs: Sequence[Pair], steps: Sequence[int]) -> Iterator[tuple[int, LanguageModel]]:
        for done, tuned in relearn(
            load(), pairs, steps,
            batch_size=config.batch_size, learning_rate=config.learning_rate, seed=seed,
            adapter=adapter,
        ):  # fmt: skip
            yield done, tuned.for_decoding()

    return go
