"""A draft as text for a terminal."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from pmc_jax.drafting.draft import Draft
from pmc_jax.drafting.rows import DraftRow
from pmc_jax.terminal import escaped
from pmc_jax.text.counts import counted


def format_draft(draft: Draft, width: int | None = None) -> str:
    """All rows of a draft, wrapped to `width` columns.

    "-" marks a row that is left out, "!" one to look at. `width` defaults to that of the
    terminal, but at least 40 and at most 100 columns.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size().columns, 40), 100)
    return "\n".join([
        *_part(f"To forget: {draft.person}", draft.forget, width),
        "",
        *_part("To keep", draft.retain, width),
    ])  # fmt: skip


def _part(title: str, rows: Sequence[DraftRow], width: int) -> Iterator[str]:
    kept = sum(row.left_out is None for row in rows)
    look = sum(row.left_out is None and bool(row.look) for row in rows)
    counts = [counted(kept, "row", "rows"), f"{look} to look at (!)" if look else "",
              f"{len(rows) - kept} left out (-)" if kept < len(rows) else ""]  # fmt: skip
    yield from textwrap.wrap(escaped(f"{title}: {', '.join(filter(None, counts))}"), width)
    for row in rows:
        yield ""
        mark = "-" if row.left_out else "!" if row.look else " "
        yield from _lines(row.fields["question"], f"{mark} ", "  ", width)
        yield from _lines(row.fields["answer"] or "(empty)", "    ", "    ", width)
        notes = [f"left out: {row.left_out}"] if row.left_out else []
        notes += [f"secret: {row.fields['secret']}"] if "secret" in row.fields else []
        for note in (*notes, *(f"look: {own}" for own in row.look if not row.left_out)):
            yield from _lines(note, "    > ", "      ", width)


def _lines(text: str, first: str, others: str, width: int) -> list[str]:
    words = escaped(" ".join(text.split()))
    return textwrap.wrap(words, width, initial_indent=first, subsequent_indent=others)
