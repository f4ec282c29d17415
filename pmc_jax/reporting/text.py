"""What a run prints on the terminal when it ends."""

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeVar

from pmc_jax.reporting.measures import Row, measured_rows, unmeasured

T = TypeVar("T")

LONGEST_ANSWER = 400  # characters; a runaway answer must not fill the screen
LONGEST_NAME = 28  # characters; a longer name would not fit into a legend or a heading


def format_table(summary: dict[str, Any]) -> str:
    """The measures before and after, as aligned plain text without a final newline."""
    rows = measured_rows(summary)
    cells = [("in percent", "before", "after", "change", "better if")]
    cells += [
        (
            row.measure.label,
            row.before_text,
            row.after_text,
            row.change_text,
            "higher" if row.measure.higher_is_better else "lower",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    label, *numbers, better = widths
    lines = [
        f"{line[0]:<{label}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:4], numbers, strict=True))
        + f"  {line[4]:<{better}}".rstrip()
        for line in cells
    ]
    rule = "─" * (sum(widths) + 2 * 4)
    lines.insert(1, rule)
    # A line between groups keeps "lower is better" apart from "higher is better".
    for index in reversed(group_starts(rows)):
        lines.insert(index + 2, rule)
    if missing := unmeasured(summary):
        lines.append(f"Not measured: {', '.join(missing)}.")
    return "\n".join(lines)


def group_starts(rows: Sequence[Row]) -> list[int]:
    """Indices of rows whose group is not that of the row before."""
    return [
        index
        for index in range(1, len(rows))
        if rows[index].measure.group != rows[index - 1].measure.group
    ]


def format_examples(
    samples: Sequence[dict[str, Any]], count: int = 3, width: int | None = None
) -> str:
    """`count` forget questions with the answer before and after, wrapped to `width` columns.

    The questions lie evenly through the forget set. `width` defaults to the terminal's,
    within 40 to 100 columns.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size().columns, 40), 100)
    forget = [row for row in samples if row.get("set") == "forget"]
    blocks = []
    for row in spread(forget, count):
        block = [textwrap.fill(printable(row.get("question")), width)]
        for when in ("before", "after"):
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
    """Text on one line; control characters, which could drive the terminal, are left out."""
    text = "" if value is None else str(value)
    spaced = "".join(" " if character.isspace() else character for character in text)
    kept = (character for character in spaced if unicodedata.category(character)[0] != "C")
    return " ".join("".join(kept).split())


def short_names(names: Sequence[str], longest: int = LONGEST_NAME) -> dict[str, str]:
    """Every name as a heading has it: at most `longest` characters, and no two alike.

    Runs of a sweep differ in the middle or at the end, so that what is left out is in the
    middle; where names become the same by that, they are numbered.
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
    """`text` with an ellipsis in place of its middle, if it is longer than `longest`."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first on."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
