"""Write reports again, or compare many runs: `pmc report`."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pmc_jax.cli import startup
from pmc_jax.cli.arguments import Parser, command_parser
from pmc_jax.cli.commands import WIDTH, called
from pmc_jax.errors import UserError
from pmc_jax.terminal import print_error

MOST_NAMED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"} & {*arguments}:
        import pmc_jax.reporting  # noqa: F401, while a terminal shows that the command is starting
    startup.begun()
    try:
        with startup.interruptible():
            if arguments[:1] == ["pareto"]:
                pareto(arguments[1:])
            elif arguments[:1] == ["ablation"]:
                ablation(arguments[1:])
            else:
                write_reports(arguments)
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        startup.say_interrupted()
        return startup.INTERRUPTED
    finally:
        startup.ended()
    return 0


def write_reports(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs and evaluations again.

    Raises:
        UserError: if a directory is neither.
    """
    parser = command_parser("report")
    parser.add_argument(
        "directories", type=Path, nargs="+", metavar="DIRECTORY",
        help="finished runs or evaluations, such as runs/demo",
    )  # fmt: skip
    add_redact(parser)
    chosen = parser.parse_args(arguments)
    for directory in chosen.directories:
        check_directory(directory)
    for directory in chosen.directories:
        try:
            write_again(directory, redact=chosen.redact)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"{directory}: not the files of a run or of an evaluation ({reason})"
            ) from error


def add_redact(parser: argparse.ArgumentParser) -> None:
    """Add the option that hides what is to be forgotten."""
    parser.add_argument(
        "--redact", action="store_true",
        help="hide right answers and secrets of the forget rows; read from the data set again",
    )  # fmt: skip


def write_again(directory: Path, *, redact: bool) -> None:
    """Write the report of a run or an evaluation; print verdict, table and the report's path."""
    from pmc_jax.reporting import (
        format_examples,
        format_table,
        shown_summary,
        write_evaluation_report,
        write_report,
    )
    from pmc_jax.reporting.evaluation_files import changed_export, is_evaluation
    from pmc_jax.reporting.redaction import redacted_run
    from pmc_jax.reporting.run_files import changed_files, changed_warning, older_version, read_run
    from pmc_jax.reporting.side_by_side import comparison_table
    from pmc_jax.reporting.verdict import verdict_lines

    if is_evaluation(directory):
        changed = changed_export(directory)
        with shown():
            page = write_evaluation_report(directory, redact=redact or None, changed=changed)
        summary = shown_summary(directory, redact=redact or None)
        if changed:
            weights = summary["facts"][summary["models"][0]].get("weights")
            print(f"warning: {changed_warning(changed, weights)}", file=sys.stderr)
        if judged := summary["verdict"]:
            print(f"{verdict_lines(judged)}\n")
        print(comparison_table(summary))
    else:
        changed = changed_files(directory)
        with shown():
            page = write_report(directory, redact=redact, changed=changed)
        run = read_run(directory).with_changed(changed)
        for warning in run.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if redact:
            run, _ = redacted_run(directory, run)
        if judged := run.summary.get("verdict"):
            print(f"{verdict_lines(judged)}\n")
        elif reason := older_version(run.summary):
            print(f"{reason}\n")
        print(format_table(run.summary))
        if run.samples:
            print(f"\n{format_examples(run.samples)}")
    print(f"\nReport: {page}")


def shown() -> AbstractContextManager[object]:
    """Show that a report is being written. Nothing may be printed to stdout meanwhile."""
    from pmc_jax.runtime.progress import stage

    return stage("writing the report", None, to_stderr=True)


def check_directory(directory: Path) -> None:
    """Check that a directory is not one level above runs or evaluations.

    Raises:
        UserError: if it is, with the directories to choose from.
    """
    found = sorted(path.parent for path in directory.glob("*/summary.json"))
    if found and not (directory / "summary.json").is_file():
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UserError(
            f"{directory} is not a run or an evaluation; give one of those in it: "
            f"{', '.join(map(str, found[:MOST_NAMED]))}{more}"
        )


def comparison_parser(name: str, purpose: str, out: str) -> argparse.ArgumentParser:
    """The parser of a comparison of many runs."""
    parser = Parser(f"{called('report')} {name}", description=textwrap.fill(purpose, WIDTH))
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUNS",
        help="directories of runs, or directories that contain them",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(out), metavar="DIR",
        help=f"directory for tables, plots and the page; default: {out}",
    )  # fmt: skip
    add_redact(parser)
    return parser


def pareto(arguments: Sequence[str]) -> None:
    """Compare methods over many runs, and write tables, plots and a page.

    Raises:
        UserError: if the runs cannot be compared.
    """
    purpose = (
        "Compares methods over many runs: unlearn quality against utility, with means over seeds. "
        "Writes tables, plots and a page."
    )
    chosen = comparison_parser("pareto", purpose, "comparison").parse_args(arguments)
    from pmc_jax.reporting.pareto import write_comparison

    with shown():
        table = write_comparison(chosen.runs, chosen.out, redact=chosen.redact)
    print(table)


def ablation(arguments: Sequence[str]) -> None:
    """Show the effect of one setting over many runs, and write a plot and tables.

    Raises:
        UserError: if the runs differ in other settings.
    """
    purpose = "Shows the effect of one setting over many runs. Writes a plot and tables."
    parser = comparison_parser("ablation", purpose, "ablation")
    parser.add_argument(
        "--over", metavar="KEY",
        help="the setting, such as method.temperature; not needed if runs differ in one only",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    from pmc_jax.reporting.ablation import write_ablation

    with shown():
        table = write_ablation(chosen.runs, chosen.over, chosen.out, redact=chosen.redact)
    print(table)


if __name__ == "__main__":
    sys.exit(main())
