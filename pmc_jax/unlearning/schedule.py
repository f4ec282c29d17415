"""How many questions an optimizer step holds and which: the same for every method."""

import dataclasses
from typing import Any

from pmc_jax.data.batches import epoch_order
from pmc_jax.decoding import Decoding
from pmc_jax.model.memory import MOST_ROWS
from pmc_jax.settings import automatic, bounded, one_of, switch


@dataclasses.dataclass(frozen=True)
class Training:
    """How long to train, and how a step's questions and samples are divided.

    Attributes:
        epochs: how often every forget question is visited.
        batch_size: forget questions per micro-batch; an optimizer step has batch_size ×
            accumulation of them.
        accumulation: micro-batches per optimizer step.
        micro_batch: most forget questions in a forward and backward pass; "auto": batch_size, or
            the half, quarter, … of it that fits into memory.
        count_partial_updates: whether an epoch's last update counts in full even if it has fewer
            questions; false ends the run after epochs × questions / (batch_size × accumulation)
            updates, as the published code does.
        max_length: most tokens of prompt and response together.
        only: train only these weights: a pattern or a list of patterns, such as mlp, [q,v] or
            layers.-4: for the last four layers; null: all.
        rehearsal: number of retain pairs that the target model writes before the first step, in
            addition to the data set: it asks questions and answers them. Not in the paper; 0:
            none.
        gradient_dtype: dtype of the gradients and of their sum; null: that of the weights.
        decode_batch: most responses decoded at a time; "auto": as many as fit into memory.
        prune: stop decoding samples that can no longer be selected.
        wave: samples of a question decoded at a time; later ones are skipped once one scores 0.
            0: all at once.
        drafts: read the original answer and the remembered response, which samples may begin
            with, and decode only what follows.
        chunk: most decode steps between two checks for samples that are finished or pruned.
        compact: move the remaining samples into a smaller batch once they fit.
        grow_cache: let the KV cache grow with the samples; false: full length from the start.

    The settings from `prune` on save time or memory and change no result except by rounding.
    `prune` and `wave` do nothing where selection is random (`method.selection_temperature`).
    """

    epochs: int = bounded(10, least=0)
    batch_size: int = bounded(8, least=1, most=2**16)
    accumulation: int = bounded(1, least=1, most=2**12)
    micro_batch: int | str = automatic()
    count_partial_updates: bool = True
    max_length: int = bounded(200, least=2)
    only: Any = None
    rehearsal: int = bounded(0, least=0, most=2**14, needs="retain_per_forget")
    gradient_dtype: str | None = one_of(None, "float32", "bfloat16")
    decode_batch: int | str = automatic(needs="samples")
    prune: bool = switch(True, needs="selection_temperature")
    wave: int = bounded(0, least=0, needs="selection_temperature")
    drafts: bool = switch(False, needs="selection_temperature")
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

    @property
    def part_size(self) -> int:
        """Forget questions in a forward and backward pass."""
        most = self.batch_size if isinstance(self.micro_batch, str) else self.micro_batch
        return min(most, self.questions_per_step)

    @property
    def parts(self) -> int:
        """Forward and backward passes of an optimizer step; the last may have fewer questions."""
        return -(-self.questions_per_step // self.part_size)

    def sampled_at_once(self, samples: int) -> int:
        """Questions whose `samples` responses are decoded at a time.

        The same in all steps, so that all steps share a few shapes.
        """
        most = MOST_ROWS if isinstance(self.decode_batch, str) else self.decode_batch
        return max(1, min(most // samples, self.questions_per_step))

    def updates_per_epoch(self, questions: int) -> int:
        """Optimizer steps that visit every question once."""
        return -(-questions // self.questions_per_step)

    def epoch_length(self, questions: int) -> float:
        """Optimizer steps that an epoch counts for the length of a run and of its warm-up."""
        if self.count_partial_updates:
            return self.updates_per_epoch(questions)
        return questions / self.questions_per_step

    def total_updates(self, questions: int) -> int:
        """Optimizer steps of a whole run."""
        if self.count_partial_updates:
            return self.epochs * self.updates_per_epoch(questions)
        return self.epochs * questions // self.questions_per_step

    def visited(self, seed: int, step: int, questions: int) -> list[int]:
        """The questions of a step: a slice of its epoch's permutation, none twice."""
        epoch, index = divmod(step, self.updates_per_epoch(questions))
        first = index * self.questions_per_step
        order = epoch_order(seed, epoch, questions)
        return [int(i) for i in order[first : first + self.questions_per_step]]
