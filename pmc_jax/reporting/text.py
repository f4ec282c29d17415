"""The text that a run prints when it ends."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from pmc_jax.reporting.measures import measured_rows, unmeasured
from pmc_jax.reporting.tables import WIDTH, text_table
from pmc_jax.terminal import escaped

T = TypeVar("T")

LONGEST_ANSWER = 400  # characters; a runaway answer must not fill the screen
LONGEST_NAME = 28  # characters; a longer name would not fit into a legend or a heading


def format_table(summary: Mapping[str, Any]) -> str:
    """The measures before and after as a text table without a final newline."""
    groups = [
        [
            (
                row.measure.label,
                row.before_text,
                row.after_text,
                row.change_text,
                {True: "higher", False: "lower", None: ""}[row.measure.higher_is_better],
            )
            for row in rows
        ]
        for _, rows in groupby(measured_rows(summary), lambda row: row.measure.group)
    ]
    header = ("in percent", "before", "after", "change", "better if")
    table = text_table(header, groups, left=(0, 4))
    missing = unmeasured(summary)
    lines = [table]
    if missing:
        lines.append(textwrap.fill(f"Not measured: {', '.join(missing)}.", WIDTH))
    if untuned := summary.get("untuned"):
        lines.append(textwrap.fill(f"Note: {untuned}.", WIDTH))
    return "\n".join(lines)


def format_examples(
    samples: Sequence[dict[str, Any]], count: int = 3, width: int | None = None
) -> str:
    """`count` forget questions with the answer before and after, wrapped to `width` columns.

    The questions are evenly spaced over the forget set. `width` defaults to that of the
    terminal, but at least 40 and at most 100 columns.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size().columns, 40), 100)
    forget = [row for row in samples if row.get("set") == "forget"]
    blocks = []
    for row in spread(forget, count):
        block = [textwrap.fill(printable(row.get("question")), width)]
        for when in ("before", "after"):
            if row.get(when) is None:
                continue
            answer = textwrap.shorten(
                printable(row.get(when)) or "(empty)", LONGEST_ANSWER, placeholder=" …"
            )
            indent = f"  {when:<6}  "
            block.append(
                textwrap.fill(
                    answer, width, initial_indent=indent, subsequent_indent=" " * len(indent)
                )
            )
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


def printable(value: Any) -> str:
    """Text on one line, with control characters written out."""
    return escaped(" ".join(("" if value is None else str(value)).split()))


def bulleted(sentences: Sequence[str], width: int = WIDTH) -> list[str]:
    """Each sentence as a point of a list, wrapped to `width` columns."""
    return [
        textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ")
        for text in sentences
    ]


def short_names(names: Sequence[str], longest: int = LONGEST_NAME) -> dict[str, str]:
    """Every name in at most `longest` characters, without duplicates.

    Long names lose their middle, since the runs of a sweep often differ at the end. Names that
    become equal are numbered.
    """
    short: dict[str, str] = {}
    for name in names:
        chosen, number = cut_middle(name, longest), 1
        while chosen in short.values():
            number += 1
            end = f" ({number})"
            chosen = cut_middle(name, longest - len(end)) + end
        short[name] = chosen
    return short


def cut_middle(text: str, longest: int) -> str:
    """`text` with an ellipsis in place of its middle if it is longer than `longest`."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, beginning with the first."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
