"""Write the report of a finished run again: `python -m pmc_jax.report RUN_DIR`."""

import argparse
import sys
from pathlib import Path

from pmc_jax.errors import UserError
from pmc_jax.reporting import format_examples, format_table, write_report
from pmc_jax.reporting.run_files import read_run


def main(arguments: list[str] | None = None) -> int:
    """Print the run's table and examples, write its page, and print where that is."""
    parser = argparse.ArgumentParser(prog="python -m pmc_jax.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="directory of a finished run, e.g. runs/demo")
    run_dir = parser.parse_args(arguments).run_dir
    try:
        run = read_run(run_dir)
        page = write_report(run_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(run.summary))
    if run.samples:
        print(f"\n{format_examples(run.samples)}")
    print(f"\nReport: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
