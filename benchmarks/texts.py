"""How texts are compared, counted on TOFU: `python benchmarks/texts.py TOFU`.

TOFU is a directory with TOFU's files. The command prints in how many texts ROUGE reads other words
than the package `rouge_score`, and how much of the right answers to `forget10` is revealed by its
wrong and by its paraphrased answers.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rouge_score.tokenizers import DefaultTokenizer

from pmc_jax.data.files import read_objects
from pmc_jax.data.load import load_dataset
from pmc_jax.data.rows import DataConfig
from pmc_jax.evaluation.levels import level_of
from pmc_jax.evaluation.quality import background, row_facts
from pmc_jax.text.rouge import rouge_words


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for own in value.values() if isinstance(value, dict) else value:
            yield from texts_in(own)


def compare_words(directory: Path) -> None:
    """Print how many distinct texts have other words than in `rouge_score`."""
    files = sorted(directory.glob("*.json"))
    texts = dict.fromkeys(text for path in files for text in texts_in(read_objects(path)))
    tokenize = DefaultTokenizer(use_stemmer=True).tokenize
    differ = sum(list(rouge_words(text)) != tokenize(text) for text in texts)
    print(f"{len(texts):,} distinct texts, {differ} with other words than in rouge_score")


def shares(found: Iterable[str]) -> str:
    """How many answers reveal nothing, a part, and most, in percent."""
    counts = Counter(found)
    total = counts.total()
    parts = (f"{100 * counts[level] / total:.1f}% {level}" for level in ("none", "part", "most"))
    return f"{', '.join(parts)} (of {total:,})"


def compare_facts(directory: Path) -> None:
    """Print how much of the right answers the wrong and the paraphrased ones reveal."""
    data = DataConfig(path=str(directory), forget="forget10", retain="retain90")
    sets = load_dataset(data).evaluation
    known, pairs = background(sets), []
    for row in sets["forget"]:
        (facts,) = row_facts(row, known)
        pairs.append((facts, row))
    wrong = (level_of(facts, text) for facts, row in pairs for text in row.perturbed)
    reworded = (level_of(facts, str(row.paraphrased)) for facts, row in pairs)
    print(f"wrong answers reveal:       {shares(wrong)}")
    print(f"paraphrased answers reveal: {shares(reworded)}")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="TOFU", help="directory of TOFU's files")
    directory = parser.parse_args().directory
    compare_words(directory)
    compare_facts(directory)


if __name__ == "__main__":
    main()
