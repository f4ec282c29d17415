"""Where rows stand on the device: groups of slots, in few distinct shapes.

A row is one sample of one prompt. The rows of a group belong to the same prompt and read one
copy of its keys and values; a prompt may have several groups.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

MIN_ROWS = 8
"""A step for fewer rows than this costs about as much."""

MANY_ROWS = 128
"""From so many on, what is left of rows moves to a smaller shape sooner: before a chunk's end and,
of several samples of a prompt, when half would do."""

SHORT_LENGTH, FIRST_LENGTH = 16, 32
"""Decode steps that the suffix cache of short and of long responses has room for at first."""


def shapes(
    prompts: int, samples: int, *, wave: int = 0, compact: bool = True
) -> list[tuple[int, int]]:
    """The (groups, slots) in which up to `prompts` · `samples` rows are decoded, largest first.

    In a `wave`, not 0, no prompt has more rows than that at a time. If they are to be compact,
    each has about a quarter of the rows of the one before it, or half where those are many and
    several of a prompt: every one is a compilation. Slots go first, so that what is left of many
    prompts finds room; then groups.
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
    """Rows to prefill `prompts` in: `most` or, if they are to be compact, a quarter of it, a
    sixteenth, …, as few as will do.

    Prefill is a small part of sampling, but every number of rows is a compilation.
    """
    rows = most
    while compact and rows > 1 and -(-rows // 4) >= prompts:
        rows = -(-rows // 4)
    return rows


def cache_lengths(time: int, factor: int = 2) -> list[int]:
    """The lengths that the suffix cache takes for responses of up to `time` tokens.

    A long one grows by this factor when it is full: a small one where attention reads all of it, a
    large one where it reads what is written. Each length is a compilation: a short one goes to
    `time` at once, or has it from the start where that would hardly be twice as much.
    """
    if time < 2 * FIRST_LENGTH:
        return [time] if time < 2 * SHORT_LENGTH else [SHORT_LENGTH, time]
    found = [FIRST_LENGTH]
    while found[-1] < time:
        found.append(min(factor * found[-1], time))
    return found


def groups_needed(counts: Int[np.ndarray, " prompts"], slots: int) -> int:
    """Groups of `slots` rows for prompts with so many rows each."""
    return int((-(-counts // slots)).sum())


def smallest_shape(
    counts: Int[np.ndarray, " prompts"], choices: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The last of `choices` with room for prompts that have so many rows each."""
    fitting = [shape for shape in choices if groups_needed(counts, shape[1]) <= shape[0]]
    return fitting[-1]


def few_rows(running: int, shape: tuple[int, int], choices: Sequence[tuple[int, int]]) -> int:
    """How many rows of `shape` may be left when it is time to see whether they fit a smaller one.

    As many as the next of `choices` has slots; if there are no more already, which did not fit
    since they are of too many prompts, half of them. Less than `running`, which is at least 1, so
    that each look comes after some decoding. 0, for no look before the chunk's end, where there
    is no smaller shape, or what it would spare is not worth another program.
    """
    if math.prod(shape) < MANY_ROWS:
        return 0
    smaller = [groups * slots for groups, slots in choices if groups * slots < math.prod(shape)]
    room = max(smaller, default=0)
    return room if room < running else running // 2


def arrange(
    chosen: Bool[np.ndarray, "prompts samples"], shape: tuple[int, int]
) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, "groups slots"]]:
    """Place the chosen rows: each group's prompt, and each slot's row (prompt · samples + sample).

    A slot that is left empty holds -1; a group without rows has prompt 0.
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
