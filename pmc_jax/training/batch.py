"""How many questions an optimizer step holds, and which ones."""

import dataclasses

from pmc_jax.data.batches import epoch_order
from pmc_jax.decoding import Decoding
from pmc_jax.settings import bounded, one_of, switch


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Epochs, batches, sequence lengths, and how samples are decoded.

    Attributes:
        epochs: how often every forget question is visited.
        batch_size: forget questions per micro-batch.
        accumulation: micro-batches per optimizer step.
        max_length: most tokens of prompt and response together.
        gradient_dtype: dtype of gradients and their sum; None: that of the weights.
        rows: most responses decoded at once.
        prune: stop a sample once it cannot be selected any more.
        wave: samples per question in a wave; 0: all. The first sample that scores 0 ends it.
        chunk: decode steps between checks for finished samples.
        compact: move the last unfinished samples into smaller arrays.
        grow_cache: let the KV cache grow with the samples.

    The settings from `prune` on save work and change results by rounding only. `prune` and
    `wave` have no effect if selection has a temperature.
    """

    epochs: int = bounded(10, least=0)
    batch_size: int = bounded(8, least=1)
    accumulation: int = bounded(1, least=1)
    max_length: int = bounded(200, least=2)
    gradient_dtype: str | None = one_of(None, "float32", "bfloat16")
    rows: int = bounded(512, least=1, needs="samples")
    prune: bool = switch(True, needs="selection_temperature")
    wave: int = bounded(0, least=0, needs="selection_temperature")
    chunk: int = bounded(8, least=1, needs="selection_temperature")
    compact: bool = switch(True, needs="selection_temperature")
    grow_cache: bool = switch(True, needs="selection_temperature")

    @property
    def decoding(self) -> Decoding:
        """How samples are decoded."""
        return Decoding(chunk=self.chunk, compact=self.compact, grow_cache=self.grow_cache)

    @property
    def questions_per_step(self) -> int:
        """Forget questions per optimizer step."""
        return self.batch_size * self.accumulation

    def sampled_at_once(self, samples: int) -> int:
        """Questions whose `samples` responses are decoded at a time: a step's, as `rows` allow.

        The same in all steps, so that all have the same few shapes.
        """
        return max(1, min(self.rows // samples, self.questions_per_step))


def updates_per_epoch(questions: int, batch: BatchConfig) -> int:
    """Optimizer steps that visit every question once."""
    return -(-questions // batch.questions_per_step)


def visited(seed: int, step: int, count: int, batch: BatchConfig) -> list[int]:
    """Which of `count` questions a step visits: a slice of the epoch's permutation, none twice."""
    epoch, place = divmod(step, updates_per_epoch(count, batch))
    first = place * batch.questions_per_step
    order = epoch_order(seed, epoch, count)
    return [int(i) for i in order[first : first + batch.questions_per_step]]
