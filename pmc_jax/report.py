"""Write the reports of finished runs or evaluations again, or compare runs.

`python -m pmc_jax.report DIRS… [--redact]`; or `python -m pmc_jax.report pareto RUNS… [--out DIR]`,
or `python -m pmc_jax.report ablation RUNS… [--over KEY] [--out DIR]` to see what one setting does,
with directories of runs, or directories that hold them.
"""

import argparse
import sys
from pathlib import Path

from pmc_jax.errors import UserError
from pmc_jax.reporting import (
    format_examples,
    format_table,
    write_evaluation_report,
    write_report,
)
from pmc_jax.reporting.ablation import write_ablation
from pmc_jax.reporting.evaluation_files import is_evaluation, read_evaluation
from pmc_jax.reporting.pareto import write_comparison
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.side_by_side import comparison_table

MOST_NAMED = 10


def main(arguments: list[str] | None = None) -> int:
    """Print the table and examples, write the page, and print where that is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["pareto"]:
        return pareto(arguments[1:])
    if arguments[:1] == ["ablation"]:
        return ablation(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m pmc_jax.report", description=__doc__)
    parser.add_argument(
        "directories", type=Path, nargs="+",
        help="of finished runs or evaluations, e.g. runs/demo evaluations/evaluation",
    )  # fmt: skip
    parser.add_argument(
        "--redact", action="store_true",
        help="of an evaluation: leave out answers that hold something of the right ones",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    try:
        for directory in chosen.directories:
            check_directory(directory)
        for directory in chosen.directories:
            write_again(directory, redact=chosen.redact)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_again(directory: Path, *, redact: bool) -> None:
    """Write the page of a run or an evaluation, and print its table and where the page is."""
    if is_evaluation(directory):
        page = write_evaluation_report(directory, redact=redact or None)
        print(comparison_table(read_evaluation(directory).summary))
    else:
        run = read_run(directory)
        page = write_report(directory)
        print(format_table(run.summary))
        if run.samples:
            print(f"\n{format_examples(run.samples)}")
    print(f"\nReport: {page}")


def check_directory(directory: Path) -> None:
    """Refuse a directory that holds finished runs or evaluations instead of being one.

    Raises:
        UserError: naming those to choose from.
    """
    found = sorted(path.parent for path in directory.glob("*/summary.json"))
    if found and not (directory / "summary.json").is_file():
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UserError(
            f"{directory} is no run or evaluation itself; give one of those in it: "
            f"{', '.join(map(str, found[:MOST_NAMED]))}{more}"
        )


def pareto(arguments: list[str]) -> int:
    """Compare methods by the runs given; write tables, pictures and a page."""
    parser = argparse.ArgumentParser(prog="python -m pmc_jax.report pareto", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs, or above them")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="where to write")
    chosen = parser.parse_args(arguments)
    try:
        print(write_comparison(chosen.runs, chosen.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def ablation(arguments: list[str]) -> int:
    """Tell what one setting does in the runs given; write a picture and tables."""
    parser = argparse.ArgumentParser(prog="python -m pmc_jax.report ablation", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs, or above them")
    parser.add_argument(
        "--over", metavar="KEY",
        help="the setting, e.g. method.temperature; not needed where the runs differ in one alone",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="where to write")
    chosen = parser.parse_args(arguments)
    try:
        print(write_ablation(chosen.runs, chosen.over, chosen.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
