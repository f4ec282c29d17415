"""Progress of a run: bars on a terminal and in a notebook, plain lines elsewhere.

Something moves at least every ten seconds on a terminal, and every thirty seconds elsewhere, also
while a function is compiled or many answers are decoded at once. If there are several processes,
only process 0 shows it. What is said is also written to the run's log.
"""

import datetime
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pmc_jax.errors import Stopped, UserError
from pmc_jax.runtime.compilation import seconds_compiling
from pmc_jax.runtime.processes import is_first

LINE_SECONDS = 10.0
"""Without a bar, a stage prints at most one line in this time."""

SILENT_SECONDS = 28.0
"""Without a bar, a stage prints a line after this time. On a busy machine it is a little later."""

BEAT_SECONDS = 1.0
"""How often a stage looks whether it has been silent for too long."""

NOTEBOOK_SECONDS = 0.2
"""In a notebook, a bar is redrawn at most once in this time."""

COMPILING_SECONDS = 2.0
"""A compilation is shown after this time."""

BAR_WIDTH = 10


class Work:
    """What decoding has done, which it counts while it runs and the current stage shows.

    Attributes:
        tokens: decoded since the process began.
        answers: those of the current batch that are complete.
        counted: when tokens were counted last, by `time.monotonic`.
    """

    tokens = 0
    answers = 0
    counted = 0.0


def decoded(tokens: int, answers: int) -> None:
    """Count `tokens` that were just decoded; `answers` of the current batch are complete."""
    Work.tokens += tokens
    Work.answers = answers
    Work.counted = time.monotonic()


class Log:
    """The log of a run: what is said from the beginning of the command on, as plain text.

    Attributes:
        file: the open file, if there is one.
        earlier: what was said before there was one.
        said: when something was said last, by `time.monotonic`.
    """

    file: TextIO | None = None
    earlier: tuple[str, ...] = ()
    said = float("-inf")


def log(text: str) -> None:
    """Write to the log; if none is open yet, when one is opened."""
    Log.said = time.monotonic()
    now = datetime.datetime.now().strftime("%H:%M:%S")
    lines = "".join(f"{now}  {line}".rstrip() + "\n" for line in text.strip("\n").split("\n"))
    if Log.file is None:
        Log.earlier = (*Log.earlier, lines)[-100:]
        return
    with suppress(OSError):  # a full disk is reported where it matters
        Log.file.write(lines)
        Log.file.flush()


class LogHandler(logging.Handler):
    """Writes warnings to the log, and to stderr if no other handler does."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._alone = not logging.getLogger().handlers

    def emit(self, record: logging.LogRecord) -> None:
        log(f"{record.levelname.lower()}: {record.getMessage()}")
        if self._alone and logging.lastResort is not None:
            logging.lastResort.handle(record)


@contextmanager
def logged_to(path: Path, *, goes_on: bool = False) -> Iterator[None]:
    """Append what is said in the block to the file `path`, and the error that ends it.

    What the same command has said before is written first. Only process 0 writes.

    Args:
        goes_on: whether the log was open before in this command, so that it needs no new heading.

    Raises:
        UserError: if the file cannot be opened.
    """
    if not is_first():
        yield
        return
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    handler = LogHandler()
    with file:
        if not goes_on:
            today = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            file.write(f"--- {today}\n")
        file.write("".join(Log.earlier))
        Log.file, Log.earlier = file, ()
        logging.getLogger().addHandler(handler)
        try:
            yield
        except UserError as error:
            log(f"error: {error}")
            raise
        except Stopped as end:
            log(str(end))
            raise
        except KeyboardInterrupt:
            log("interrupted")
            raise
        except BaseException as error:
            log("".join(traceback.format_exception(error)))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            Log.file = None


def say(text: str = "", *, to_stderr: bool = False) -> None:
    """Print a text, and write it to the log."""
    if is_first():
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)
        log(text)


def speed_text(tokens: float, seconds: float) -> str:
    """A speed in tokens per second: "1,234 tokens/s", "0.25 tokens/s"."""
    speed = tokens / max(seconds, 1e-9)
    return f"{speed:,.0f} tokens/s" if speed >= 10 else f"{speed:.2g} tokens/s"


def duration_text(seconds: float) -> str:
    """A duration in words: "42 s", "7 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Stage:
    """Progress of one stage, in plain lines.

    Attributes:
        name: what is done.
        total: units in all; None: unknown, as of loading a model.
        done: units done.
        note: what is said beside them.
        counts_answers: whether the units are answers.
        to_stderr: whether lines are printed there rather than to stdout.
    """

    counts_answers = False
    to_stderr = False

    def __init__(self, name: str, total: int | None, done: int) -> None:
        self.name, self.total, self.done, self.note = name, total, done, ""
        self._started = self._updated = time.monotonic()
        # The silence counts from what was said last, perhaps by an earlier stage.
        self._printed = Log.said
        self._first, self._tokens = done, Work.tokens
        self._ended = threading.Event()
        Work.answers = 0

    def update(self, done: int, note: str = "") -> None:
        """Set how many units are done, and the note beside them."""
        self.done, self.note = done, note
        self._updated, self._tokens = time.monotonic(), Work.tokens
        Work.answers = 0
        self._moved()

    def say(self, message: str) -> None:
        """Print a message."""
        say(message, to_stderr=self.to_stderr)

    def now(self) -> str:
        """What is happening since the last unit was done."""
        parts = []
        if (seconds := seconds_compiling()) is not None and seconds >= COMPILING_SECONDS:
            parts.append(f"compiling, {seconds:.0f} s")
        if tokens := Work.tokens - self._tokens:
            passed = Work.counted - self._updated
            parts.append(f"{tokens:,} tokens decoded, {speed_text(tokens, passed)}")
        return ", ".join(parts) or self.note

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    @property
    def reached(self) -> int:
        """Units done, with the answers of a batch that is not complete yet."""
        done = self.done + (Work.answers if self.counts_answers else 0)
        return done if self.total is None else min(done, self.total)

    @property
    def left(self) -> float | None:
        """Seconds that are left; None if that cannot be told."""
        done = self.reached - self._first
        if not done or self.total is None or self.reached == self.total:
            return None
        last = time.monotonic() if self.reached > self.done else self._updated
        return (last - self._started) / done * (self.total - self.reached)

    def line(self) -> str:
        """The state in one line."""
        count = "" if self.total is None else f" {self.reached}/{self.total}"
        times = [f"{duration_text(self.seconds)}"]
        if self.left is not None:
            times.append(f"{duration_text(self.left)} left")
        return f"{self.name}:{count} ({', '.join(times)})  {self.now()}".rstrip()

    def begin(self) -> None:
        """Keep showing the stage, also while nothing is updated."""
        threading.Thread(target=self._beat, daemon=True).start()

    def end(self) -> None:
        """Show the stage no longer."""
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if time.monotonic() - self._printed >= SILENT_SECONDS:
                self._print()

    def _moved(self) -> None:
        if self.done == self.total or time.monotonic() - self._printed >= LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        say(self.line(), to_stderr=self.to_stderr)


class SilentStage(Stage):
    """A stage of a process other than the first, or within another stage."""

    def begin(self) -> None:
        """Show nothing."""

    def _print(self) -> None:
        pass


class TimeColumn(ProgressColumn):
    """The time since the stage began, and what is left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """What the bar shows."""
        stage: Stage = task.fields["stage"]
        left = "" if stage.left is None else f", {clock(stage.left)} left"
        return Text(clock(stage.seconds) + left, style="progress.remaining")


class CountColumn(ProgressColumn):
    """How many units are done, if they are counted."""

    def render(self, task: Task) -> Text:
        """What the bar shows."""
        stage: Stage = task.fields["stage"]
        return Text("" if stage.total is None else f"{stage.reached}/{stage.total}")


class NoteColumn(ProgressColumn):
    """What is happening."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """What the bar shows."""
        stage: Stage = task.fields["stage"]
        return Text(stage.now(), overflow="ellipsis", no_wrap=True)


def clock(seconds: float) -> str:
    """A time as a clock shows it: 0:42, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def columns() -> tuple[ProgressColumn, ...]:
    """What a bar shows."""
    bar = TextColumn("{task.description}"), BarColumn(bar_width=BAR_WIDTH)
    return (*bar, CountColumn(), TimeColumn(), NoteColumn())


class TerminalStage(Stage):
    """Progress of one stage as a bar on a terminal; messages appear above it.

    The bar moves by itself. The log has the lines that a file would have.
    """

    def __init__(self, name: str, total: int | None, done: int, bar: Progress) -> None:
        super().__init__(name, total, done)
        self._bar = bar
        self._task = bar.add_task(name, total=total, completed=done, stage=self)

    def update(self, done: int, note: str = "") -> None:
        super().update(done, note)
        self._bar.update(self._task, completed=done)

    def say(self, message: str) -> None:
        self._bar.console.print(message, highlight=False, markup=False, soft_wrap=True)
        log(message)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._bar.update(self._task, completed=self.reached)
            if time.monotonic() - self._printed >= SILENT_SECONDS:
                self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        log(self.line())


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

    def __init__(self, name: str, total: int | None, done: int, bar: NotebookBar) -> None:
        # Every Python kernel of Jupyter brings IPython; nothing else needs it.
        from IPython.display import display

        super().__init__(name, total, done)
        self._bar = bar
        self._task = bar.add_task(name, total=total, completed=done, stage=self)
        self._output = display(bar, display_id=True)

    def update(self, done: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done)
        super().update(done, note)

    def say(self, message: str) -> None:
        self._bar.messages += (message,)
        self._print()
        log(message)

    def end(self) -> None:
        """Draw the bar as it stands, without messages."""
        super().end()
        self._bar.messages = ()
        self._print()

    def _beat(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            self._print()

    def _moved(self) -> None:
        if time.monotonic() - self._printed >= NOTEBOOK_SECONDS:
            self._print()

    def _print(self) -> None:
        self._output.update(self._bar)
        self._printed = time.monotonic()


def warn(warnings: Iterable[str]) -> None:
    """Print warnings, a line each."""
    for warning in warnings:
        say(f"warning: {warning}")


_current: list[Stage] = []


@contextmanager
def stage(
    name: str, total: int | None, done: int = 0, *, to_stderr: bool = False
) -> Iterator[Stage]:
    """Show a stage of `total` units, of which `done` are done already.

    `total` is None if they cannot be counted. A stage within another one is not shown. With
    `to_stderr`, stdout is left to the results of a command.
    """
    console = Console(stderr=to_stderr)
    # In a notebook, what cannot be counted would leave an output of its own for each.
    if not is_first() or _current or (console.is_jupyter and total is None):
        yield SilentStage(name, total, done)
        return
    on_terminal = (
        sys.stderr if to_stderr else sys.stdout
    ).isatty() and not console.is_dumb_terminal
    bar = None
    if console.is_jupyter:
        shown: Stage = NotebookStage(name, total, done, NotebookBar(*columns(), console=console))
    elif on_terminal:
        bar = Progress(*columns(), console=console, transient=total is None)
        bar.start()
        shown = TerminalStage(name, total, done, bar)
    else:
        shown = Stage(name, total, done)
    shown.to_stderr = to_stderr
    _current.append(shown)
    shown.begin()
    try:
        yield shown
    finally:
        _current.remove(shown)
        shown.end()
        if bar is not None:
            bar.stop()


@contextmanager
def activity(name: str) -> Iterator[None]:
    """Show that something is done that cannot be counted, and how long it takes."""
    with stage(name, None):
        yield


@contextmanager
def token_stage(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a stage in tokens per second; call what it yields with (answers done, tokens)."""
    started, tokens = time.perf_counter(), 0
    with stage(name, total) as progress:
        progress.counts_answers = True

        def on_batch(done: int, count: int) -> None:
            nonlocal tokens
            tokens += count
            spoken = speed_text(tokens, time.perf_counter() - started)
            progress.update(progress.done + done, spoken)

        yield on_batch
