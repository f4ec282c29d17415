"""The layout of samples in the decoder's arrays: groups of slots, in few distinct shapes.

A row is one sample of one prompt, and takes one slot. All rows of a group belong to the same
prompt and read the same copy of its keys and values. A prompt can have several groups.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

MIN_ROWS = 8
"""A decode step for fewer rows costs about as much as a step for this many rows."""

MANY_ROWS = 128
"""With at least this many rows, the running rows move to a smaller shape sooner: before the end of
a chunk, and, with several samples of a prompt, as soon as they fit into half as many rows."""

SHORT_LENGTH, FIRST_LENGTH = 16, 32
"""The first length of the suffix cache, for short and for long responses."""


def shapes(
    prompts: int, samples: int, *, wave: int = 0, compact: bool = True
) -> list[tuple[int, int]]:
    """The shapes (groups, slots) for up to `prompts` · `samples` rows, largest first.

    Each shape needs a compilation, so there are few shapes. A shape has about a quarter of the
    rows of the one before it, or half if there are many rows and several samples of a prompt.
    Slots are reduced before groups, so that the last rows of many prompts fit.

    Args:
        wave: the maximum number of rows that a prompt has at a time; 0: `samples`.
        compact: whether rows move to smaller shapes; otherwise there is one shape.
    """
    groups, slots = prompts, min(wave or samples, samples)
    found = [(groups, slots)]
    while compact and groups * slots > MIN_ROWS:
        halvings = 1 if groups * slots >= MANY_ROWS and slots > 1 else 2
        for _ in range(halvings):
            if groups * slots > MIN_ROWS:
                groups, slots = (groups, -(-slots // 2)) if slots > 1 else (-(-groups // 2), 1)
        found.append((groups, slots))
    return found


def prompt_rows(prompts: int, most: int, *, compact: bool = True) -> int:
    """The number of rows in which to prefill `prompts` prompts.

    It is `most` or, if `compact`, the smallest of a quarter, a sixteenth, … of it that is
    enough. Prefill is a small part of sampling, but every number of rows needs a compilation.
    """
    rows = most
    while compact and rows > 1 and -(-rows // 4) >= prompts:
        rows = -(-rows // 4)
    return rows


def cache_lengths(time: int, factor: int = 2) -> list[int]:
    """The lengths that the suffix cache grows through, for responses of up to `time` tokens.

    Each length needs a compilation. A cache for short responses has one or two lengths.

    Args:
        factor: the growth of a full cache. A small factor is better if attention reads the whole
            cache, and a large factor if it reads only the part that is written.
    """
    if time < 2 * FIRST_LENGTH:
        return [time] if time < 2 * SHORT_LENGTH else [SHORT_LENGTH, time]
    found = [FIRST_LENGTH]
    while found[-1] < time:
        found.append(min(factor * found[-1], time))
    return found


def groups_needed(counts: Int[np.ndarray, " prompts"], slots: int) -> int:
    """The number of groups of `slots` rows for prompts with `counts` rows."""
    return int((-(-counts // slots)).sum())


def smallest_shape(
    counts: Int[np.ndarray, " prompts"], choices: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The last of `choices` with room for prompts with `counts` rows."""
    fitting = [shape for shape in choices if groups_needed(counts, shape[1]) <= shape[0]]
    return fitting[-1]


def few_rows(running: int, shape: tuple[int, int], choices: Sequence[tuple[int, int]]) -> int:
    """The number of running rows at which a chunk ends, to check if they fit a smaller shape.

    It is the number of slots in the next smaller of `choices`. If at most this many rows are
    running already, they belong to too many prompts to fit, and it is half of the running rows.
    It is less than `running`, which is at least 1, so some decoding precedes every check. It is 0,
    which means no check before the chunk's end, if there is no smaller shape, or if the rows are so
    few that another compiled function costs more than it saves.
    """
    if math.prod(shape) < MANY_ROWS:
        return 0
    smaller = [groups * slots for groups, slots in choices if groups * slots < math.prod(shape)]
    room = max(smaller, default=0)
    return room if room < running else running // 2


def arrange(
    chosen: Bool[np.ndarray, "prompts samples"], shape: tuple[int, int]
) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, "groups slots"]]:
    """Assign the chosen rows to slots.

    Returns:
        prompt_of: the prompt of each group; 0 for a group without rows.
        row_of: the row of each slot, prompt · samples + sample; -1 for an empty slot.
    """
    groups, slots = shape
    prompt_of, row_of = np.zeros(groups, np.int32), np.full(shape, -1, np.int32)
    group = 0
    for prompt, own in enumerate(chosen):
        rows = prompt * len(own) + np.flatnonzero(own)
        for first in range(0, len(rows), slots):
            part = rows[first : first + slots]
            prompt_of[group], row_of[group, : len(part)] = prompt, part
            group += 1
    return prompt_of, row_of
