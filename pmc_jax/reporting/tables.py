"""Tables as plain text of at most 80 columns."""

import io
import re
from collections.abc import Collection, Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
BETWEEN = 2
"""Spaces between columns."""
LEAST = 8
"""Columns of text that the first column has at least."""
LINES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")
"""A line below the header and between groups."""


def longest_word(title: str) -> int:
    """The letters of the longest word in a header."""
    return max(map(len, re.findall(r"[^\W\d_]+", title)), default=0)


def text_table(
    header: Sequence[str],
    groups: Sequence[Sequence[Sequence[str]]],
    *,
    left: Collection[int] = (0,),
    width: int = WIDTH,
) -> str:
    """A table without a final newline; a line separates the header and the groups of rows.

    Long headers and long first cells are wrapped, all other cells stay on one line. Words of
    headers are broken only if there is no other way.

    Args:
        left: the columns that are aligned to the left.
        width: the most columns of text.
    """
    rows = [row for group in groups for row in group]
    cells = [max((len(row[i]) for row in rows), default=1) for i in range(len(header))]
    whole = [
        cells[0],
        *(max(c, longest_word(t)) for t, c in zip(header[1:], cells[1:], strict=True)),
    ]
    if LEAST + sum(whole[1:]) + BETWEEN * (len(header) - 1) <= width:
        cells = whole
    room = width - sum(cells[1:]) - BETWEEN * (len(header) - 1)
    first = max(min(max(cells[0], len(header[0])), room), LEAST)
    others = list(zip(header, cells, strict=True))[1:]
    longest_title = max((len(title) for title, _ in others), default=1)
    cap = next(
        (
            cap
            for cap in range(longest_title, 0, -1)
            if first + sum(BETWEEN + max(c, min(len(t), cap)) for t, c in others) <= width
        ),
        1,
    )
    table = Table(box=LINES, show_edge=False, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0))
    for i, (title, longest) in enumerate(zip(header, cells, strict=True)):
        table.add_column(
            Text(title),
            justify="left" if i in left else "right",
            vertical="bottom",
            overflow="fold",
            min_width=None if i == 0 else longest,
            max_width=first if i == 0 else max(longest, cap),
        )
    for group in groups:
        for number, row in enumerate(group, start=1):
            table.add_row(*map(Text, row), end_section=number == len(group))
    out = io.StringIO()
    # A wider console: what `width` cannot hold becomes a longer line and is not cut.
    # In a notebook, rich would display the table rather than write it to `out`.
    console = Console(
        file=out, width=max(width, LEAST + width - room), color_system=None, force_jupyter=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
