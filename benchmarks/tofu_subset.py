"""A part of TOFU for models small enough to learn it by heart on a CPU.

`python benchmarks/tofu_subset.py DIR OUT` takes the first questions of `forget10` (with their
paraphrases) and the first rows of `retain90` from DIR, and writes them to files of the same names
in OUT.
"""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path


def write_subset(directory: Path, out: Path, counts: Mapping[str, int]) -> None:
    """Write the first `counts[name]` lines of each file `name`.json to the new directory `out`.

    Raises:
        ValueError: naming a file with fewer lines.
    """
    out.mkdir(parents=True)
    for name, count in counts.items():
        with (directory / f"{name}.json").open() as lines:
            kept = list(itertools.islice(lines, count))
        if len(kept) < count:
            raise ValueError(f"{name}.json has {len(kept)} rows; expected at least {count}")
        (out / f"{name}.json").write_text("".join(kept))


def main() -> None:
    """Write the files. OUT must not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of TOFU's files")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("--forget", type=int, default=64, help="forget questions; %(default)s")
    parser.add_argument("--retain", type=int, default=336, help="retain rows; %(default)s")
    options = parser.parse_args()
    counts = {
        "forget10": options.forget, "forget10_perturbed": options.forget,
        "retain90": options.retain,
    }  # fmt: skip
    try:
        write_subset(options.directory, options.out, counts)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
