"""The likelihood of given answers under a model, token by token, in batched forward passes."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.data.batches import loss_rows
from pmc_jax.language_model import LanguageModel, short
from pmc_jax.model import ModelConfig, batch_shards, forward, to_devices, to_host
from pmc_jax.model.buckets import bucket_length, power_of_two
from pmc_jax.model.forward import logits
from pmc_jax.model.memory import first_fitting, footprint, halvings
from pmc_jax.model.nll import CHUNK
from pmc_jax.model.specs import Params
from pmc_jax.runtime.memory import free_memory, in_batches
from pmc_jax.runtime.processes import from_all
from pmc_jax.settings import AUTO

MOST_PAIRS = 64
"""The most answers that "auto" scores at a time on each shard of a batch."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of an answer, which includes its end token."""


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """A model's scores of each token of one answer, its end token included.

    Attributes:
        log_probs: log p(token | the tokens before it), in nats.
        greedy: whether the token is the most probable one; of equally probable tokens, the first.
        mean, variance: of log p(x) over the vocabulary, x drawn from p itself.
    """

    log_probs: Float[np.ndarray, " tokens"]
    greedy: Bool[np.ndarray, " tokens"]
    mean: Float[np.ndarray, " tokens"]
    variance: Float[np.ndarray, " tokens"]

    def without_end(self) -> "TokenScores":
        """The scores without the scores of the end token."""
        return TokenScores(*(getattr(self, f.name)[:-1] for f in dataclasses.fields(self)))

    @property
    def is_finite(self) -> bool:
        """Whether no score is NaN or infinite."""
        numbers = (self.log_probs, self.mean, self.variance)
        return all(bool(np.isfinite(own).all()) for own in numbers)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per token, −(1/L) Σ log p."""
        return -float(np.mean(self.log_probs))


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def next_token_scores(
    params: Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    cfg: ModelConfig,
    dtype: DTypeLike,
) -> tuple[
    Float[Array, "batch time-1"],
    Bool[Array, "batch time-1"],
    Float[Array, "batch time-1"],
    Float[Array, "batch time-1"],
]:
    """The fields of `TokenScores` for tokens 1, 2, … of right-padded sequences.

    Logits are computed for `CHUNK` tokens at a time; `[batch, time, vocab]` is never in memory.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = forward(params, tokens, positions, mask, cfg, dtype=dtype)
    batch, time, embed = hidden.shape
    count = batch * (time - 1)
    chunk = min(CHUNK, count)
    states = hidden[:, :-1].reshape(count, embed)
    states = jnp.pad(states, ((0, -count % chunk), (0, 0))).reshape(-1, chunk, embed)
    targets = jnp.pad(tokens[:, 1:].reshape(count), (0, -count % chunk)).reshape(-1, chunk)

    def one_chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        states, targets = inputs
        log_probs = jax.nn.log_softmax(logits(params, states, cfg), axis=-1)
        probs = jnp.exp(log_probs)
        chosen = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
        mean = (probs * log_probs).sum(-1)
        variance = (probs * (log_probs - mean[:, None]) ** 2).sum(-1)
        return chosen, jnp.argmax(log_probs, axis=-1) == targets, mean, variance

    found = jax.lax.map(one_chunk, (states, targets))
    return tuple(x.reshape(-1)[:count].reshape(batch, time - 1) for x in found)


def answer_scores(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int | str = AUTO,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[TokenScores]:
    """Scores of the answer of every pair.

    Pairs of similar length form a batch. A batch of fewer than `batch_size` pairs is padded to
    a power of two. `on_batch` is called with (pairs done, tokens scored).

    Args:
        batch_size: the most pairs at a time; "auto": as many as fit into memory, up to 64 on each
            shard of a batch. If memory still runs out, it is halved.

    Raises:
        NotFinite: if a score of an answer is NaN or infinite, because logits are, or overflow.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (lengths[i], i))
    found: dict[int, TokenScores] = {}
    if batch_size == AUTO:
        longest = bucket_length(max(lengths, default=0))
        own, shards = footprint(model.config, model.dtype), batch_shards()
        jax.block_until_ready(model.params)  # before memory is measured
        (batch_size,) = from_all(
            lambda: (
                first_fitting(
                    [shards * count for count in halvings(MOST_PAIRS)],
                    lambda count: own.score(count, longest),
                    free_memory(),
                ),
            )
        )

    def scored(chosen: Sequence[int], size: tuple[int, ...]) -> Any:
        """The fields of `TokenScores` for a batch of pairs, on the host."""
        batch = min(size[0], power_of_two(len(chosen)))
        filled = [pairs[i] for i in chosen] + [pairs[chosen[0]]] * (batch - len(chosen))
        prompts, answers = zip(*filled, strict=True)
        tokens, mask, _ = loss_rows(prompts, answers, bucket_length(lengths[chosen[-1]]))
        arrays = next_token_scores(
            model.params, to_devices(tokens, "batch", None), to_devices(mask, "batch", None),
            cfg=model.config, dtype=model.dtype,
        )  # fmt: skip
        return to_host(arrays)

    for chosen, fields in in_batches(
        order, scored, (int(batch_size),),
        lambda size: (-(-size[0] // 2),) if size[0] > batch_shards() else None,
        lambda size: f"{size[0]} answers at a time",
        task=(model.config, model.dtype), what="scoring",
    ):  # fmt: skip
        for row, i in enumerate(chosen):
            part = slice(len(pairs[i][0]) - 1, lengths[i] - 1)
            found[i] = TokenScores(*(field[row, part] for field in fields))
            if not found[i].is_finite:
                prompt = model.template.tokenizer.decode(
                    list(pairs[i][0]), skip_special_tokens=True
                )
                raise model.not_finite(i, f"an answer to the prompt {short(str(prompt))}")
        if on_batch:
            on_batch(len(chosen), sum(len(pairs[i][1]) for i in chosen))
    return [found[i] for i in range(len(pairs))]


def answer_losses(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int | str = AUTO,
    on_batch: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " pairs"]:
    """Mean negative log-likelihood per token of each answer, in nats.

    The arguments are those of `answer_scores`.
    """
    scores = answer_scores(model, pairs, batch_size=batch_size, on_batch=on_batch)
    return np.array([score.loss for score in scores])
