"""The memory of a device that decoding, scoring and training take, from shapes alone.

Every number is an upper bound in bytes on each device. It counts what the compiled functions keep
for their whole time, and, for what they keep for a moment, the arrays of one layer and of the
logits. `tests/test_memory.py` compares the bounds with the compiler's numbers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pmc_jax.model.buckets import power_of_two
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.kernels.dispatch import (
    Target,
    causal_kernel,
    current_target,
    decode_kernel,
    unrolls_layers,
)
from pmc_jax.model.nll import CHUNK
from pmc_jax.model.sharding import RULES
from pmc_jax.model.specs import Params, Spec, param_specs
from pmc_jax.model.trainable import Trainable, trained_specs

SHARE = 0.8
"""The share of free memory that a choice counts on: allocators leave gaps between arrays."""

MOST_ROWS = 512
"""The most responses that "auto" decodes at a time on each shard of a batch; more save little."""

DRAW_BLOCK = 128
"""Tokens that a draw looks at for each sample (`pmc_jax.decoding.draw.BLOCK`)."""

Choice = TypeVar("Choice")


@dataclasses.dataclass(frozen=True)
class Footprint:
    """The memory that a model's functions take on each device.

    Attributes:
        cfg: the model's shape.
        dtype: what matrix products are computed in.
        target: the devices.
        data, model: sizes of the mesh axes.
        part: what is trained; None: all weights.
        cast: whether matrices are neither in `dtype` nor quantised, and so cast for every product.
    """

    cfg: ModelConfig
    dtype: str
    target: Target
    data: int = 1
    model: int = 1
    part: Trainable | None = None
    cast: bool = True

    @property
    def size(self) -> int:
        """Bytes of an element in `dtype`."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def wide(self) -> int:
        """Bytes of an element of norms, attention scores and logits."""
        return max(self.size, 4)

    @property
    def widens(self) -> bool:
        """Whether XLA computes products in float32 although `dtype` is narrower, as on CPUs."""
        return self.target.backend == "cpu" and self.size < 4

    def share(self, count: int) -> int:
        """`count` heads, channels or words over the axis "model", if it divides them."""
        return count // self.model if count % self.model == 0 else count

    def rows(self, count: int) -> int:
        """`count` rows of a batch over the axis "data", if it divides them."""
        return count // self.data if count % self.data == 0 else count

    def weights(self, itemsize: int, *, gathered: bool = False) -> int:
        """All weights; `gathered` as decoding has them, replicated along "data"."""
        return self._bytes(param_specs(self.cfg), itemsize, 1 if gathered else self.data)

    def trained(self, itemsize: int) -> int:
        """The weights that are trained."""
        return self._bytes(trained_specs(self.cfg, self.part), itemsize, self.data)

    def _bytes(self, specs: Params, itemsize: int, data: int) -> int:
        sizes = {"data": data, "model": self.model}

        def one(spec: Spec) -> int:
            count = 1
            for length, axis in zip(spec.shape, spec.axes, strict=True):
                parts = sizes.get(RULES[axis] or "", 1)
                count *= length // parts if length % parts == 0 else length
            return count * itemsize

        return sum(map(one, jax.tree.leaves(specs)))

    @property
    def dequantised(self) -> int:
        """The matrices of one layer in `dtype`, if they are quantised: 0 if not."""
        if self.part is None or not self.part.is_quantised:
            return 0
        layers = self._bytes(param_specs(self.cfg)["layers"], self.size, 1)
        return layers // self.cfg.num_layers

    @property
    def decoding_weights(self) -> int:
        """What `decoding_params` makes."""
        adapter = None if self.part is None else self.part.adapter
        if adapter is not None and not (adapter.merge or self.cast) and self.data == 1:
            return self.trained(self.size)  # the rest are the base's own arrays
        return self.weights(self.size, gathered=True)

    def cache(self, tokens: int) -> int:
        """Keys and values of `tokens` tokens in all layers."""
        cfg = self.cfg
        return 2 * cfg.num_layers * self.share(cfg.num_kv_heads) * cfg.head_dim * self.size * tokens

    def head(self, rows: int, copies: float) -> int:
        """Logits of `rows` positions, `copies` times; and the output weights if XLA casts them."""
        words = self.share(self.cfg.vocab_size)
        cast = 4 * words * self.cfg.hidden_size if self.widens else 0
        return round(copies * self.wide * rows * words) + cast

    def layer(self, tokens: int, scores: int) -> int:
        """What one layer computes for `tokens` tokens, with `scores` attention scores in all."""
        cfg = self.cfg
        embed, mlp = cfg.hidden_size, self.share(cfg.intermediate_size)
        projected = self.share(cfg.num_heads) + 2 * self.share(cfg.num_kv_heads)
        attention = tokens * (2 * embed + 2 * projected * cfg.head_dim) + 3 * scores
        dense = tokens * ((4 if cfg.parallel_block else 2) * embed + 3 * mlp)
        widened = self.weights(4, gathered=True) if self.widens else 0
        return round(1.05 * self.wide * max(attention, dense)) + widened + self.dequantised

    def scores(self, rows: int, queries: int, keys: int, *, decoding: bool = False) -> int:
        """How many attention scores a layer holds; kernels hold none."""
        cfg = self.cfg
        kernel = (
            decode_kernel(self.target, cfg.head_dim, cfg.num_kv_heads)
            if decoding
            else causal_kernel(
                self.target, cfg.head_dim, cfg.num_kv_heads, keys, cfg.attention_softcap
            )
        )
        count = rows * queries * keys
        if kernel == "cudnn":
            return count  # the mask, which cuDNN takes as a bias
        return count * self.share(cfg.num_heads) if kernel == "xla" else 0

    def prefill(self, prompts: int, width: int) -> int:
        """Prefill of `prompts` prompts of `width` tokens, with the cache that it makes."""
        rows = self.rows(prompts)
        work = self.layer(rows * width, self.scores(rows, width, width))
        return self.cache(rows * width) + work + self.head(rows, 1)

    def decode(
        self, prompts: int, samples: int, width: int, time: int, *, filters: bool = True
    ) -> int:
        """Decoding of `samples` responses of up to `time` tokens to each of `prompts` prompts.

        Args:
            filters: whether top-k or top-p filter the tokens.
        """
        rows = self.rows(prompts)
        prefix, suffix = self.cache(rows * width), self.cache(rows * samples * time)
        held = prefix + suffix + self.head(rows * samples, 6 if filters else 3.5)
        # One layer's cache is there twice while all grow (`grow`), and while attention reads it.
        held += 2 * (prefix + suffix) // self.cfg.num_layers
        if samples == 1 and self.target.backend == "cpu":
            held += suffix  # XLA changes its layout
        if self.widens:
            held += 2 * (prefix + suffix) + 2 * self.share(self.cfg.vocab_size) * (
                self.cfg.hidden_size
            )
        if not unrolls_layers(self.target):
            held += suffix // 2  # `grow` holds half of the old cache, of at most half the length
        scores = self.scores(rows * samples, 1, width + time, decoding=True)
        return held + self.layer(rows * samples, scores)

    def generate(
        self,
        prompts: int,
        samples: int,
        width: int,
        time: int,
        *,
        filters: bool = True,
        drafts: int = 0,
    ) -> int:
        """Prefill and decoding: the larger of the two.

        Args:
            width: of a prompt and its longest draft.
            drafts: how many drafts each prompt has; 0: it is decoded without.
        """
        decoded = self.decode(prompts, samples, width, time, filters=filters)
        read = self.prefill(prompts, width)
        if drafts:
            read = self.read_drafts(prompts, samples, width, drafts, filters=filters)
        return max(read, decoded)

    def read_drafts(
        self, prompts: int, samples: int, width: int, drafts: int, *, filters: bool = True
    ) -> int:
        """Prefill of each prompt with each of its drafts, and the first draws of its samples."""
        rows = self.rows(prompts) * drafts
        states = self.wide * rows * width * self.cfg.hidden_size
        draws = self.head(rows, 6 if filters else 3.5) + 4 * self.wide * rows * samples * DRAW_BLOCK
        chosen = self.cache(self.rows(prompts) * width) if drafts > 1 else 0
        return self.prefill(prompts * drafts, width) + states + draws + chosen

    def score(self, rows: int, time: int) -> int:
        """A forward pass over `rows` sequences of `time` tokens, with their logits in chunks."""
        own = self.rows(rows)
        states = 2 * self.wide * own * time * self.cfg.hidden_size
        work = self.layer(own * time, self.scores(own, time, time))
        return work + states + self.head(min(CHUNK, own * time), 3.25)

    def backward(self, rows: int, time: int, remat: str) -> int:
        """The forward and backward pass over `rows` rows of `time` tokens, without gradients."""
        cfg, own = self.cfg, self.rows(rows)
        tokens = own * time
        embed, mlp = cfg.hidden_size, self.share(cfg.intermediate_size)
        heads, kv_heads = self.share(cfg.num_heads), self.share(cfg.num_kv_heads)
        projected = (heads + 2 * kv_heads) * cfg.head_dim
        scores = self.scores(own, time, time)
        whole = tokens * (6 * embed + 2 * projected + heads * cfg.head_dim + 4 * mlp) + 2 * scores
        kept = {
            "none": whole,
            "dots": tokens * (4 * embed + projected + 2 * mlp),
            "full": tokens * embed,
        }[remat]
        cast = self.weights(self.size) if self.size < 4 and self.cast else 0
        outside = None if self.part is None else self.part.selection.outside
        head = self.wide * self.share(cfg.vocab_size) * embed  # its gradient
        return (
            cfg.num_layers * kept * self.size
            + round(1.7 * whole) * self.wide  # a layer's arrays and their cotangents
            + cast
            + self.dequantised
            + self.head(min(CHUNK, tokens), 4)
            + (head if outside is None or {"embed", "lm_head"} & {*outside} else 0)
        )

    def train_step(
        self,
        rows: int,
        time: int,
        *,
        remat: str,
        gradient_bytes: int,
        parts: int,
        update_norm: bool,
    ) -> int:
        """An optimizer step beside weights and moments, which it changes in place.

        Args:
            rows, time: of a micro-batch.
            gradient_bytes: of an element of the gradients.
            parts: how many micro-batches; the gradients of several are summed up.
            update_norm: whether the norm of the update is computed, which keeps a copy on CPUs.
        """
        gradients = self.trained(gradient_bytes) * (2 if parts > 1 else 1)
        update = self.trained(4) * (1 + update_norm) if self.target.backend == "cpu" else 0
        return gradients + max(update, self.backward(rows, time, remat))


def footprint(
    cfg: ModelConfig, dtype: DTypeLike, part: Trainable | None = None, *, cast: bool = True
) -> Footprint:
    """The footprint of a model on the devices and the mesh of now; see `Footprint`."""
    mesh = jax.sharding.get_abstract_mesh()
    data, model = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.shape["model"])
    name = jnp.dtype(dtype).name
    return Footprint(cfg, name, current_target(name), data, model, part, cast)


def halvings(count: int) -> list[int]:
    """`count`, and half of it, rounded up, until 1."""
    found = [count]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def first_fitting(
    choices: Sequence[Choice], size: Callable[[Choice], int], free: int | None
) -> Choice:
    """The first of `choices` that takes at most its share of the `free` bytes; else the last.

    None: nothing is known of the memory, and the first is taken.
    """
    if free is None:
        return choices[0]
    return next((one for one in choices if size(one) <= SHARE * free), choices[-1])


def rows_at_once(
    model: Footprint,
    free: int | None,
    *,
    prompts: int,
    samples: int,
    width: int,
    time: int,
    filters: bool,
    wave: int = 0,
    drafts: int = 0,
) -> tuple[int, int]:
    """How many prompts, and samples of each, are decoded at a time if there are `free` bytes.

    Prompts are halved before samples.

    Args:
        free: on each device; None: unknown.
        prompts, samples: as many as there are.
        width, time: the most tokens of a prompt with its draft and of a response, in buckets.
        wave: the most samples of a prompt at a time; 0: all.
        drafts: how many drafts each prompt has; 0: it is decoded without.

    Returns:
        The numbers of prompts and of samples.
    """
    most = min(wave or samples, samples)
    each = min(max(MOST_ROWS // samples, 1), power_of_two(-(-max(prompts, 1) // model.data)))
    choices = [(model.data * count, most) for count in halvings(each)]
    choices += [(model.data, count) for count in halvings(most)[1:]]

    def size(choice: tuple[int, int]) -> int:
        return model.generate(*choice, width, time, filters=filters, drafts=drafts)

    return first_fitting(choices, size, free)
