"""Sequences of one optimizer step laid out in micro-batches: several to a row, in few shapes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from pmc_jax.model.buckets import bucket_length, bucket_rows

Pair = tuple[Sequence[int], Sequence[int]]
"""Prompt and answer as token ids."""

PER_ROW, LONGEST_PER_ROW = 4, 2
"""A row has room for 4 sequences of mean length, but for at most 2 of `max_length`."""

Item = TypeVar("Item")


class PackedRows(NamedTuple):
    """Sequences one after another, right-padded.

    Attributes:
        tokens: prompt and answer; zeros are padding.
        segments: the number of a token's sequence in its micro-batch, from 1; 0 at padding.
        loss_mask: True at answer tokens.
    """

    tokens: Int32[np.ndarray, "parts rows width"]
    segments: Int32[np.ndarray, "parts rows width"]
    loss_mask: Bool[np.ndarray, "parts rows width"]


def width_for(room: int, max_length: int) -> int:
    """The bucket of `room` tokens; the widest row there is if the next bucket exceeds it.

    No two widths are then close to each other.
    """
    width, widest = bucket_length(room), LONGEST_PER_ROW * max_length
    return width if bucket_length(width + 1) <= widest else widest


def row_width(lengths: Sequence[int], max_length: int) -> int:
    """Tokens of a row for sequences of these lengths, of which none is over `max_length`.

    A wide row has less padding, since more sequences fit into one another's gaps.
    """
    longest = max(lengths, default=1)
    typical = sum(lengths) // max(len(lengths), 1)
    return width_for(max(longest, PER_ROW * typical), max_length)


def first_fit(lengths: Mapping[int, int], width: int) -> list[list[int]]:
    """Rows of at most `width` tokens: each sequence, longest first, goes into the first with room.

    `lengths` are the sequences' by number; rows hold their numbers.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(lengths, key=lambda i: (-lengths[i], i)):
        row = next((row for row, left in enumerate(room) if lengths[i] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def divided(items: Sequence[Item], parts: int, per_part: int) -> list[list[Item]]:
    """`items` in order, `per_part` to each of `parts`; the last may have fewer or none."""
    return [list(items[part * per_part : (part + 1) * per_part]) for part in range(parts)]


def packed(parts: Sequence[Mapping[int, Pair]], width: int, multiple: int = 1) -> PackedRows:
    """The sequences of each micro-batch in rows of `width`; all have the same number of rows.

    Args:
        parts: for each micro-batch its sequences by their number, from 1.
        multiple: the number of rows is rounded up to a bucket, and then to a multiple of this.
            Rows without a sequence are padding.

    Raises:
        ValueError: if a sequence has no prompt, no answer, or more than `width` tokens.
    """
    placed = []
    for part in parts:
        lengths = {number: len(prompt) + len(answer) for number, (prompt, answer) in part.items()}
        for number, (prompt, answer) in part.items():
            if not prompt or not answer or lengths[number] > width:
                raise ValueError(
                    f"a sequence has {len(prompt)} prompt and {len(answer)} answer tokens; "
                    f"expected at least one of each and at most {width} in all"
                )
        placed.append(first_fit(lengths, width))
    most = max(map(len, placed), default=0)
    rows = -(-bucket_rows(most) // multiple) * multiple
    tokens = np.zeros((len(parts), rows, width), np.int32)
    segments, loss_mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for index, (part, own_rows) in enumerate(zip(parts, placed, strict=True)):
        for row, members in enumerate(own_rows):
            start = 0
            for number in members:
                prompt, answer = part[number]
                middle, end = start + len(prompt), start + len(prompt) + len(answer)
                tokens[index, row, start:end] = [*prompt, *answer]
                segments[index, row, start:end] = number
                loss_mask[index, row, middle:end] = True
                start = end
    return PackedRows(tokens, segments, loss_mask)
