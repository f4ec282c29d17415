"""How many questions a step holds and which, and how they are shared out."""

import dataclasses

from pmc_jax.data.batches import epoch_order
from pmc_jax.decoding import Decoding


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """How many questions a step holds and how they are shared out.

    Attributes:
        epochs: visits of every forget question.
        batch_size: forget questions per micro-batch.
        accumulation: micro-batches per optimizer step.
        max_length: most tokens of prompt and response together.
        gradient_dtype: what gradients and their sum over micro-batches are kept in; None: the
            weights' dtype.
        rows: most responses decoded at a time.
        prune: a sample that can no longer be selected is not decoded any further.
        wave: samples of a question decoded at a time; the next ones are left out once one
            scores 0. 0: all at once.
        chunk: most decode steps between two looks at what has finished or can be dropped.
        compact: few samples go into a smaller shape, and those that are left move into one; of
            many, as soon as they fit.
        grow_cache: the cache grows with the samples; else it has its full length at once.

    From `prune` on they save work and change no result but through rounding; `prune` and
    `wave` do nothing where selection is at a temperature.
    """

    epochs: int = 10
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 200
    gradient_dtype: str | None = None
    rows: int = 512
    prune: bool = True
    wave: int = 0
    chunk: int = 8
    compact: bool = True
    grow_cache: bool = True

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
