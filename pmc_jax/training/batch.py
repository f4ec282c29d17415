"""The batch of an optimizer step: sequences of all kinds, packed several to a row."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from pmc_jax.data.batches import loss_rows, retain_draw, train_sequence
from pmc_jax.data.packing import Pair, divided, packed, row_width
from pmc_jax.model import batch_shards, to_devices
from pmc_jax.unlearning.losses import KINDS
from pmc_jax.unlearning.method import Example, Method, Run, StepExamples


@struct.dataclass
class Batch:
    """An optimizer batch `[accumulation, rows, time]`, or a micro-batch `[rows, time]` of it.

    The sequences of a micro-batch are numbered from 1: room for `sizes[0]` forget answers comes
    first, then for `sizes[1]` preferred ones, then for `sizes[2]` retain pairs.

    Attributes:
        tokens: prompt, answer and end token of a sequence, then the next sequence.
        segments: the number of a token's sequence; 0 at padding.
        loss_mask: True at answer and end tokens, which carry loss.
        reference: N_ref of each sequence; 0 for methods that do not use it.
        sizes: how many sequences of each kind a micro-batch has room for; static.
    """

    tokens: Int[Array, "*parts rows time"]
    segments: Int[Array, "*parts rows time"]
    loss_mask: Bool[Array, "*parts rows time"]
    reference: Float[Array, "*parts sequences"]
    sizes: tuple[int, int, int] = struct.field(pytree_node=False)

    def slots(self, kind: str) -> slice:
        """The slots of a kind among the sequences of a micro-batch."""
        index = KINDS.index(kind)
        first = sum(self.sizes[:index])
        return slice(first, first + self.sizes[index])

    def segments_of(self, kind: str) -> Int[Array, "*parts rows time"]:
        """The number of a token's sequence among those of a kind, from 1; 0 elsewhere."""
        slots = self.slots(kind)
        is_kind = (self.segments > slots.start) & (self.segments <= slots.stop)
        return jnp.where(is_kind, self.segments - slots.start, 0)


def pack_batch(
    sequences: Mapping[str, Sequence[Example]],
    sizes: tuple[int, int, int],
    *,
    accumulation: int,
    max_length: int,
    dtype: DTypeLike,
) -> tuple[Batch, int]:
    """Sequences by kind as a batch on the devices, and how many tokens they have.

    Args:
        sequences: each kind's in the order of the questions. They are divided over the
            micro-batches, of which the last may have fewer or none.
        sizes: how many of each kind a micro-batch has room for.
        max_length: most tokens of a sequence.
        dtype: of N_ref.
    """
    tokens = [
        len(example.prompt) + len(example.answer) for own in sequences.values() for example in own
    ]
    parts: list[dict[int, tuple[list[int], list[int]]]] = [{} for _ in range(accumulation)]
    reference = np.zeros((accumulation, sum(sizes)), dtype)
    first = 0
    for kind, size in zip(KINDS, sizes, strict=True):
        for part, own in enumerate(divided(sequences.get(kind, ()), accumulation, size)):
            for index, example in enumerate(own, first):
                parts[part][index + 1] = (list(example.prompt), list(example.answer))
                reference[part, index] = example.reference
        first += size
    rows = packed(parts, row_width(tokens, max_length), batch_shards())
    batch = Batch(
        tokens=to_devices(rows.tokens, None, "batch", None),
        segments=to_devices(rows.segments, None, "batch", None),
        loss_mask=to_devices(rows.loss_mask, None, "batch", None),
        reference=to_devices(reference),
        sizes=sizes,
    )
    return batch, sum(tokens)


def pair_batch(pairs: Sequence[Pair], length: int, dtype: DTypeLike = jnp.float32) -> Batch:
    """Pairs as an optimizer batch `[1, pairs, length]` of one micro-batch, a pair to a row."""
    prompts, answers = zip(*pairs, strict=True)
    tokens, mask, loss_mask = loss_rows(prompts, answers, length)
    numbers = np.arange(1, len(pairs) + 1, dtype=np.int32)[:, None]
    segments = np.where(mask, numbers, 0).astype(np.int32)
    rows = [to_devices(x[None], None, "batch", None) for x in (tokens, segments, loss_mask)]
    reference = to_devices(np.zeros((1, len(pairs)), dtype))
    return Batch(rows[0], rows[1], rows[2], reference, (len(pairs), 0, 0))


def step_batch(run: Run[Method], step: int, chosen: StepExamples) -> tuple[Batch, int]:
    """The batch of a step: what the method chose, and retain pairs drawn with replacement.

    Also how many tokens its sequences have, padding aside.
    """
    task, training, template = run.task, run.task.training, run.task.model.template
    per_question, own = run.method.retain_pairs, run.method.answers_per_question
    questions = len(run.questions(step))
    for kind, answers in (("forget", chosen.forget), ("preferred", chosen.preferred)):
        if len(answers) not in (0, own * questions):
            raise ValueError(
                f"{run.method.name}: step_examples gave {len(answers)} {kind} answers; expected "
                f"{own} for each of the step's {questions} questions, or none"
            )
    drawn = retain_draw(task.seed, step, per_question * questions, max(len(run.examples.retain), 1))
    sequences = {
        "forget": chosen.forget,
        "preferred": chosen.preferred,
        "retain": [run.examples.retain[i] for i in drawn],
    }
    trained = {
        kind: [
            Example(
                *train_sequence(
                    example.prompt,
                    example.answer,
                    template.end_id,
                    training.max_length,
                    template.stop_ids,
                ),
                example.reference,
            )
            for example in own
        ]
        for kind, own in sequences.items()
    }
    size = training.part_size
    return pack_batch(
        trained,
        (
            size * own if chosen.forget else 0,
            size * own if chosen.preferred else 0,
            size * per_question,
        ),
        accumulation=training.parts,
        max_length=training.max_length,
        dtype=task.model.weights_dtype,
    )
