"""The index of benchmarks/LOG.md."""

import re
from pathlib import Path

LOG = (Path(__file__).parents[1] / "benchmarks" / "LOG.md").read_text("utf-8")


def test_the_index_has_every_entry_in_order():
    index = re.findall(r"^- \[(.+?)\]\(#(\S+)\), (\d{4}-\d\d-\d\d)\. [A-Z].*\.$", LOG, re.MULTILINE)
    entries = re.findall(r"^## (.+), (\d{4}-\d\d-\d\d)$", LOG, re.MULTILINE)
    assert [(title, date) for title, _, date in index] == entries
    assert [date for _, date in entries] == sorted(date for _, date in entries)
    for title, anchor, date in index:
        kept = re.sub(r"[^\w\- ]", "", f"{title}, {date}".lower())
        assert anchor == kept.replace(" ", "-")
