"""From the first moment of a command: Ctrl-C in one line, and a sign of life on a terminal.

Importing takes seconds, so nothing heavy is imported here.
"""

import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any

from pmc_jax.errors import memory_text, short_of_memory

INTERRUPTED = 128 + signal.SIGINT
"""The status of a command that was interrupted."""

SHOW_AFTER = 1.0
"""Seconds until a terminal shows that the command is starting."""

SHOW_IN_FILES = 25.0
"""Seconds between lines that say so elsewhere; importing takes so long on a very busy machine."""

LEAST_ADDRESS_SPACE = 10**9
"""Bytes. With a lower limit, importing the libraries fails, or hangs."""

AGAIN = 0
"""The byte by which `_on_unraisable` asks the watching thread to send the signal again. The system
writes the numbers of signals to the same pipe, and none of them is 0."""

_COMMANDS = ("pmc_jax.", "convert")


class _Command:
    """The state of the running command.

    Attributes:
        starting: whether it still imports; only then a terminal shows so.
        orderly: whether Ctrl-C raises KeyboardInterrupt, so that the command can close its files.
            Otherwise nothing is open, and it ends at once.
        interrupts: how many Ctrl-C the watching thread has seen.
        at_once: whether Ctrl-C came while nothing was open.
        repeats: how many signals that raise a Ctrl-C again are still to be noted.
        told: whether the user was told that it was interrupted.
        shown: whether the terminal shows that it is starting.
        lines: how many lines elsewhere have said so.
        raised: whether Ctrl-C has raised KeyboardInterrupt.
        stderr: a copy of stderr's descriptor; descriptor 2 itself may be muted for a while.
    """

    starting = True
    orderly = False
    interrupts = 0
    at_once = False
    repeats = 0
    told = False
    shown = False
    lines = 0
    raised = False
    stderr = 2


_telling = threading.Lock()
"""Both the main thread, which ends the process, and the one that notes the signal may tell."""


def begin_module() -> None:
    """`begin` for `python -m MODULE` with one of our modules, whose packages are imported now."""
    given = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if sys.argv[:1] == ["-m"] and given[-1].removeprefix("-m").startswith(_COMMANDS):
        begin()


def begin() -> None:
    """From here on, Ctrl-C ends the command with one line and status 130, the second at once.

    A thread notes the signal, because the main thread may be in compiled code for minutes. If the
    memory limit is too low for the imports, the command ends now.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= allowed < LEAST_ADDRESS_SPACE:
        found, least = (f"{size / 1e6:,.0f} MB" for size in (allowed, LEAST_ADDRESS_SPACE))
        text = f"error: memory is limited to {found} (ulimit -v); expected at least {least}"
        print(text, file=sys.stderr)
        sys.exit(2)
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # begun already, or ignored, as in the background
    with suppress(OSError):  # stderr may be closed
        _Command.stderr = os.dup(2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _on_interrupt)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    sys.excepthook = _on_error
    sys.unraisablehook = partial(_on_unraisable, writing)


def begun() -> None:
    """Everything is imported: from here on, Ctrl-C lets the command close its files."""
    _Command.starting, _Command.orderly = False, True
    _Command.raised = _Command.told = False
    _erase()


def ended() -> None:
    """The command has closed its files: from here on, Ctrl-C ends it at once.

    The operating system does that, because no thread runs while Python shuts down.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    _Command.orderly = False
    if signal.getsignal(signal.SIGINT) is _on_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for any error that follows Ctrl-C.

    Native code may have replaced it by an error of its own, as Matplotlib's does.
    """
    try:
        yield
    except Exception as error:
        if _Command.raised:
            raise KeyboardInterrupt from error
        raise


def say_interrupted() -> None:
    """Tell the user, once."""
    with _telling:
        if not _Command.told:
            _Command.told = True
            with suppress(OSError, ValueError):
                sys.stderr.flush()
                os.write(_Command.stderr, b"interrupted; Ctrl-C again ends at once\n")


def _on_interrupt(number: int, frame: object) -> None:
    if _Command.orderly:
        _Command.raised = True
        raise KeyboardInterrupt
    _Command.at_once = True


def _on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Importing fails in many ways if there is too little memory."""
    if short_of_memory(error):
        print(f"error: {memory_text(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _on_unraisable(writing: int, ignored: Any) -> None:
    """Ask for Ctrl-C again if it came within a callback, where Python ignores exceptions."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        os.write(writing, bytes([AGAIN]))
    else:
        sys.__unraisablehook__(ignored)


def _watch(reading: int) -> None:
    started = time.monotonic()
    while True:
        ready, _, _ = select.select([reading], [], [], SHOW_AFTER if _Command.starting else None)
        if not ready:
            _show(time.monotonic() - started)
            continue
        for number in os.read(reading, 64):
            if number == AGAIN:
                time.sleep(0.1)  # until the callback has ended
                if _Command.orderly:
                    _Command.repeats += 1
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            elif number == signal.SIGINT and _Command.repeats:
                _Command.repeats -= 1
            elif number == signal.SIGINT:
                _Command.interrupts += 1
                if _Command.interrupts > 1 or _Command.at_once or not _Command.orderly:
                    _end()
                say_interrupted()


def _end() -> None:
    """End the process now; the cursor may be hidden behind a progress bar."""
    _telling.acquire(timeout=1)  # the main thread may be in the middle of its line
    with suppress(OSError):
        os.write(_Command.stderr, b"\x1b[?25h" if os.isatty(_Command.stderr) else b"")
        os.write(_Command.stderr, b"" if _Command.told else b"interrupted\n")
    os._exit(INTERRUPTED)


def _show(seconds: float) -> None:
    if not _Command.starting:
        return
    text = f"starting … {seconds:.0f} s"
    if os.isatty(_Command.stderr):
        _Command.shown = True
        os.write(_Command.stderr, f"\r{text}".encode())
    elif seconds >= (_Command.lines + 1) * SHOW_IN_FILES:
        _Command.lines += 1
        os.write(_Command.stderr, f"{text}\n".encode())


def _erase() -> None:
    if _Command.shown:
        _Command.shown = False
        os.write(_Command.stderr, b"\r\x1b[2K")
