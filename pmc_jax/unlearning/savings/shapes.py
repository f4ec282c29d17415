"""The few shapes that a run's functions are compiled for, known before its first step."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt32

from pmc_jax.data.packing import PER_ROW, width_for
from pmc_jax.decoding import suffix_lengths
from pmc_jax.decoding.layout import prompt_rows, shapes
from pmc_jax.model import batch_shards
from pmc_jax.model.buckets import bucket_length, bucket_rows, halved
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.savings.drafts import DRAFTS, longest_read


def questions_at_once(run: Run[Any]) -> int:
    """The most questions whose responses are decoded at a time, in any step."""
    return min(run.task.training.sampled_at_once(run.method.samples), len(run.task.prompts))


def padded_to_step(
    run: Run[Any],
    questions: Sequence[int],
    scores: Float[np.ndarray, "questions samples"],
) -> tuple[UInt32[np.ndarray, " step"], Float[np.ndarray, "step samples"]]:
    """Question ids and scores, padded to the questions of a whole step: one shape for all."""
    count = run.task.training.questions_per_step
    ids, padded = np.zeros(count, np.uint32), np.zeros((count, scores.shape[1]))
    ids[: len(questions)], padded[: len(questions)] = questions, scores
    return ids, padded


@dataclasses.dataclass(frozen=True)
class RunShapes:
    """The shapes that the functions of a run may be compiled for, each at most once.

    Attributes:
        prompts: (rows, tokens) of prefill, drafts included.
        rows: (groups, slots) of decoding.
        caches: lengths of the suffix cache, in tokens.
        training: (rows, tokens) of a micro-batch.
    """

    prompts: list[tuple[int, int]]
    rows: list[tuple[int, int]]
    caches: list[int]
    training: list[tuple[int, int]]

    def lines(self) -> list[str]:
        """The lines that are printed at the start."""

        def products(pairs: Iterable[tuple[int, int]]) -> str:
            return ", ".join(f"{a}x{b}" for a, b in pairs)

        ranges = []
        for width in sorted({width for _, width in self.training}):
            rows = [rows for rows, own in self.training if own == width]
            ranges.append(f"{min(rows)} to {max(rows)} x {width}")
        return [
            "compiled once each, when first needed:",
            f"  prefill, prompts x tokens: {products(self.prompts)}",
            f"  decoding, prompts x samples: {products(self.rows)}; "
            f"room for tokens: {', '.join(map(str, self.caches))}",
            f"  training, rows x tokens: {', '.join(ranges)} (few of these)",
        ]


def training_shapes(run: Run[Any], limits: Sequence[int], multiple: int) -> list[tuple[int, int]]:
    """(rows, tokens) of a micro-batch, whatever responses are remembered.

    From the rows of the shortest possible sequences up to one row for each sequence.
    """
    training, method = run.task.training, run.method
    per_question = method.answers_per_question + method.retain_pairs
    prompts = [len(prompt) for prompt in run.task.prompts]
    retain = [len(pair.prompt) + len(pair.answer) for pair in run.examples.retain]
    shortest = min(min(prompts) + 1, *retain)
    longest = (
        training.max_length
        if method.drawn.forced
        else max(
            *(
                min(training.max_length, length + limit + 1)
                for length, limit in zip(prompts, limits, strict=True)
            ),
            *(min(training.max_length, length) for length in retain),
        )
    )
    rooms = range(PER_ROW * shortest, PER_ROW * longest + 1)
    widths = {width_for(room, training.max_length) for room in rooms}
    visited = len(prompts) % training.questions_per_step or training.questions_per_step
    fewest = min(visited, training.part_size) * per_question
    most = min(len(prompts), training.part_size) * per_question
    found = set()
    for width in widths:
        least = -(-fewest * shortest // width)
        for rows in range(least, most + 1):
            found.add((-(-bucket_rows(rows) // multiple) * multiple, width))
    return sorted(found)


def run_shapes(run: Run[Any], limits: Sequence[int], multiple: int | None = None) -> RunShapes:
    """The shapes of a run that samples responses and trains on one of them.

    Args:
        limits: the most tokens of a response to each question.
        multiple: how many devices its batches are sharded over; None: those of this mesh.
    """
    multiple = batch_shards() if multiple is None else multiple
    training, model = run.task.training, run.task.model
    samples, compact = run.method.samples, training.compact
    most = questions_at_once(run)
    rooms = {bucket_length(limit) for limit in limits}
    longest, prompts = longest_read(run), {len(prompt) for prompt in run.task.prompts}
    reads = range(min(prompts), longest + 1) if training.drafts else prompts
    lengths = {halved(bucket_length(longest), length) for length in reads}
    if run.method.drawn.forced:
        longest = training.max_length
        forced = range(min(prompts), longest)
        lengths |= {halved(bucket_length(longest), length) for length in forced}
        rooms = {bucket_length(length) for length in range(1, max(rooms) + 1)}
    caches = {
        length
        for room in rooms
        for length in suffix_lengths(room, model.config, model.dtype, training.decoding)
    }
    each = range(1, DRAFTS + 1) if training.drafts else [1]
    counts = {prompt_rows(count, most, compact=compact) for count in range(1, most + 1)}
    rows = {count * drafts for count in counts for drafts in each}
    return RunShapes(
        prompts=sorted((count, length) for count in rows for length in lengths),
        rows=shapes(most, samples, wave=training.wave, compact=compact),
        caches=sorted(caches),
        training=training_shapes(run, limits, multiple),
    )
