"""Progress of a run: bars on a terminal, plain lines elsewhere.

If there are several processes, only process 0 shows it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pmc_jax.runtime.processes import is_first

LINE_SECONDS = 10.0
"""Without a terminal, a stage prints at most one line in this time."""


class Stage:
    """Progress of one stage, with a note beside it."""

    def __init__(self, name: str, total: int, done: int, bar: Progress | None) -> None:
        self.name, self.total, self.done = name, total, done
        self.started = self._printed = time.monotonic()
        self._first = done
        self._bar = bar
        self._task = bar.add_task(name, total=total, completed=done, note="") if bar else None

    def update(self, done: int, note: str = "") -> None:
        """Set how many units are done, and the note."""
        self.done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if is_first() and (done >= self.total or now - self._printed >= LINE_SECONDS):
            self._printed = now
            unit_seconds = (now - self.started) / max(done - self._first, 1)
            left = f", {unit_seconds * (self.total - done):.0f} s left" if done < self.total else ""
            print(f"{self.name}: {done}/{self.total}{left}  {note}".rstrip(), flush=True)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        elif is_first():
            print(message, flush=True)


@contextmanager
def stage(name: str, total: int, done: int = 0) -> Iterator[Stage]:
    """Show a stage of `total` units, of which `done` are done already."""
    if not sys.stdout.isatty() or not is_first():
        yield Stage(name, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console()) as bar:
        yield Stage(name, total, done, bar)


@contextmanager
def token_stage(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a stage in tokens per second; call what it yields with (units done, tokens)."""
    started, tokens = time.perf_counter(), 0
    with stage(name, total) as progress:

        def on_batch(done: int, count: int) -> None:
            nonlocal tokens
            tokens += count
            speed = tokens / (time.perf_counter() - started)
            progress.update(progress.done + done, f"{speed:,.0f} tokens/s")

        yield on_batch
