"""Command-line arguments: one-line errors, and help in the same form for every command."""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import NoReturn

from pmc_jax.cli.commands import COMMANDS, WIDTH, Command, called
from pmc_jax.terminal import print_error

PROTECTED = re.compile(r"\[[^]]*\]")
"""An optional argument in a usage, which is not divided."""


class Parser(argparse.ArgumentParser):
    """A parser for a command: its errors are one line, its help begins as every page does."""

    def __init__(self, prog: str, **options: object) -> None:
        super().__init__(prog=prog, formatter_class=Formatter, allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        print_error(f"{message}; {self.prog} --help explains the arguments")
        sys.exit(2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's formatter at the width of our pages."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=WIDTH)


def command_parser(name: str) -> Parser:
    """The parser of a command that takes arguments by position; the caller adds them."""
    return Parser(called(name), usage=usage(name), description=introduction(name))


def joined(found: re.Match[str]) -> str:
    """A text that `textwrap` does not divide."""
    return found[0].replace(" ", "\xa0")


def usage(name: str) -> str:
    """The ways to call a command, each on lines of its own."""
    lines = [
        line
        for way in COMMANDS[name].usage
        for line in textwrap.wrap(
            f"{called(name)} {PROTECTED.sub(joined, way)}", WIDTH - 7, subsequent_indent="    ",
            break_on_hyphens=False,
        )
    ]  # fmt: skip
    return "\n       ".join(line.replace("\xa0", " ") for line in lines)


def introduction(name: str) -> str:
    """What a command does, and examples."""
    command = COMMANDS[name]
    return "\n".join([*textwrap.wrap(command.purpose, WIDTH), "", *examples(name, command)])


def examples(name: str, command: Command) -> Iterator[str]:
    """Typical calls, each with what it does as a comment."""
    yield "examples:"
    for purpose, arguments in command.examples:
        yield f"  # {purpose}"
        yield from wrapped_call(f"{called(name)} {arguments}".strip())


def wrapped_call(call: str) -> Iterator[str]:
    """A shell command in lines that end in a backslash; an option stays with its value."""
    lines = ["  "]
    for word in re.findall(r"""(?:--(?!help)\S+ )?(?:[^\s"']|"[^"]*"|'[^']*')+""", call):
        if len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append("      ")
        lines[-1] += f"{word} "
    for number, line in enumerate(lines, 1):
        yield line.rstrip() + (" \\" if number < len(lines) else "")
