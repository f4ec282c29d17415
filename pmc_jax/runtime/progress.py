"""Progress of a run: bars on a terminal and in a notebook, plain lines elsewhere.

If there are several processes, only process 0 shows it.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pmc_jax.runtime.processes import is_first

LINE_SECONDS = 10.0
"""Without a bar, a stage prints at most one line in this time."""

NOTEBOOK_SECONDS = 0.2
"""In a notebook, a bar is redrawn at most once in this time."""


class Stage:
    """Progress of one stage, in plain lines."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done = name, total, done
        self._started = self._printed = time.monotonic()
        self._first = done

    def update(self, done: int, note: str = "") -> None:
        """Set how many units are done, and the note beside them."""
        self.done = done
        now = time.monotonic()
        if is_first() and (done >= self.total or now - self._printed >= LINE_SECONDS):
            self._printed = now
            unit_seconds = (now - self._started) / max(done - self._first, 1)
            left = f", {unit_seconds * (self.total - done):.0f} s left" if done < self.total else ""
            print(f"{self.name}: {done}/{self.total}{left}  {note}".rstrip(), flush=True)

    def say(self, message: str) -> None:
        """Print a message."""
        if is_first():
            print(message, flush=True)


class TerminalStage(Stage):
    """Progress of one stage as a bar on a terminal; messages appear above it."""

    def __init__(self, name: str, total: int, done: int, bar: Progress) -> None:
        super().__init__(name, total, done)
        self._bar, self._task = bar, bar.add_task(name, total=total, completed=done, note="")

    def update(self, done: int, note: str = "") -> None:
        self.done = done
        self._bar.update(self._task, completed=done, note=note)

    def say(self, message: str) -> None:
        self._bar.console.print(message, highlight=False)


class NotebookBar(Progress):
    """A bar with messages above it."""

    messages: tuple[str, ...] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        """What a notebook draws."""
        yield from map(Text, self.messages)
        yield from super().get_renderables()


class NotebookStage(Stage):
    """Progress of one stage in a notebook: one output that is redrawn.

    Messages appear above the bar and disappear when the stage ends.
    """

    def __init__(self, name: str, total: int, done: int, bar: NotebookBar) -> None:
        # Every Python kernel of Jupyter brings IPython; nothing else needs it.
        from IPython.display import display

        super().__init__(name, total, done)
        self._bar, self._task = bar, bar.add_task(name, total=total, completed=done, note="")
        self._output = display(bar, display_id=True)
        self._drawn = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        self.done = done
        self._bar.update(self._task, completed=done, note=note)
        if time.monotonic() - self._drawn >= NOTEBOOK_SECONDS:
            self._draw()

    def say(self, message: str) -> None:
        self._bar.messages += (message,)
        self._draw()

    def end(self) -> None:
        """Draw the bar as it stands, without messages."""
        self._bar.messages = ()
        self._draw()

    def _draw(self) -> None:
        self._output.update(self._bar)
        self._drawn = time.monotonic()


def warn(warnings: Iterable[str]) -> None:
    """Print warnings, a line each."""
    if is_first():
        for warning in warnings:
            print(f"warning: {warning}", flush=True)


@contextmanager
def stage(name: str, total: int, done: int = 0) -> Iterator[Stage]:
    """Show a stage of `total` units, of which `done` are done already."""
    console = Console()
    if not is_first() or not (console.is_jupyter or sys.stdout.isatty()):
        yield Stage(name, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    if console.is_jupyter:
        shown = NotebookStage(name, total, done, NotebookBar(*columns, console=console))
        try:
            yield shown
        finally:
            shown.end()
        return
    with Progress(*columns, console=console) as bar:
        yield TerminalStage(name, total, done, bar)


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
