"""Pages for others: the files of a run or an evaluation without what is to be forgotten.

A redacted page is written from files in which every right answer and secret of a forget row is
masked, wherever it occurs, and answers to forget questions that may reveal one are hidden. The
right answers are not in these files, so the data set is read again.
"""

import dataclasses
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pmc_jax.data import Dataset, load_dataset
from pmc_jax.data.encode import EVALUATION_ROWS, rows_fingerprint
from pmc_jax.data.files import read_object
from pmc_jax.data.rows import EvaluationRow, data_config
from pmc_jax.errors import UserError
from pmc_jax.reporting.evaluation_files import EvaluationFiles
from pmc_jax.reporting.examples import FORGOTTEN, Example, joined
from pmc_jax.reporting.run_files import RunFiles
from pmc_jax.runs.directory import INPUTS
from pmc_jax.text.words import found, squeezed, words_of

HIDDEN = "(hidden)"
"""Stands for an answer that a page must not show."""
MASK = "▇▇▇"
"""Stands for a right answer or a secret within another text."""
KEPT_KEYS = frozenset({"set", "kind", "level", "verdict", "by", "date"})
"""Keys whose values are never masked: fixed words, such as verdicts, and dates."""


@dataclasses.dataclass(frozen=True)
class Redaction:
    """What must not be shown.

    Attributes:
        rows: the right answers and the secret of each forget row, by its id.
        unknown: why these are not known; None if they are. Then every text is hidden.
    """

    rows: Mapping[int, Sequence[str]]
    unknown: str | None = None

    def masked(self, text: str) -> str:
        """A text with every right answer and secret masked."""
        if self.unknown is not None:
            return MASK if text.strip() else text
        for symbols in self._without_words:
            text = text.replace(symbols, MASK)
        positions = {each for phrase in self._candidates(text) for each in found(text, phrase)}
        shown, end = "", 0
        for start, stop in sorted(positions):
            shown += (text[end:start] + MASK) if start >= end else ""
            end = max(end, stop)
        return shown + text[end:]

    def hides(self, row: Any, answer: str, old: Iterable[str] = ()) -> bool:
        """Whether an answer to a forget question must be hidden.

        It is shown if it has no word of a right answer, of the secret or of an `old` answer,
        and both can be compared.
        """
        if not answer.strip():
            return False
        right, given = self.rows.get(row, ()), set(words_of(answer))
        words = {word for text in right for word in words_of(text)}
        if self.unknown is not None or not words or not given:
            return True
        words |= {word for text in old for word in words_of(text)}
        return bool(words & given) or any(found(answer, text) for text in right)

    def _candidates(self, text: str) -> Iterable[str]:
        """The phrases that `text` may contain."""
        if not text.isascii():
            return self._phrases
        letters = squeezed(text)
        return {
            *(phrase for word in words_of(text) for phrase in self._by_last_word.get(word, ())),
            *(phrase for own, phrase in self._squeezed if own in letters),
        }

    @cached_property
    def _phrases(self) -> list[str]:
        """All phrases."""
        return sorted({phrase for row in self.rows.values() for phrase in row})

    @cached_property
    def _by_last_word(self) -> Mapping[str, Sequence[str]]:
        """Phrases by their last word, with symbols such as ² apart or joined to it."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for phrase in self._phrases:
            for spelling in (phrase, unicodedata.normalize("NFKC", phrase)):
                if words := words_of(spelling):
                    found[words[-1]].append(phrase)
        return found

    @cached_property
    def _squeezed(self) -> list[tuple[str, str]]:
        """Phrases that have words, each after its letters."""
        return [(letters, phrase) for phrase in self._phrases if (letters := squeezed(phrase))]

    @cached_property
    def _without_words(self) -> list[str]:
        """Phrases that have symbols but no words, such as emoji."""
        phrases = {phrase.strip() for row in self.rows.values() for phrase in row}
        return [
            phrase for phrase in phrases
            if not words_of(phrase) and any(unicodedata.category(c)[0] == "S" for c in phrase)
        ]  # fmt: skip


def redaction_of(rows: Mapping[str, Sequence[EvaluationRow]]) -> Redaction:
    """What must not be shown of a data set's evaluation sets."""
    phrases: defaultdict[int, set[str]] = defaultdict(set)
    for name in FORGOTTEN:
        for row in rows.get(name, ()):
            phrases[row.id] |= {
                text
                for text in (row.answer, row.paraphrased, row.secret, *row.accepted)
                if text and text.strip()
            }
    return Redaction({row: tuple(sorted(texts)) for row, texts in phrases.items()})


def read_redaction(config: str, stored: Any) -> Redaction:
    """What must not be shown of a finished run or evaluation, from its data set.

    Args:
        config: its config.yaml, which names the data set.
        stored: the hash of the evaluation rows that it used.
    """
    try:
        settings = yaml.safe_load(config) or {}
        data: Dataset = load_dataset(data_config(settings["data"]))
    except KeyError:
        return Redaction({}, "its config.yaml names no data set")
    except (UserError, OSError, TypeError, yaml.YAMLError) as error:
        return Redaction({}, f"its data set cannot be read ({error})")
    if stored != rows_fingerprint(data.evaluation):
        return Redaction({}, "its data set has changed")
    return redaction_of(data.evaluation)


def redacted_run(directory: Path, run: RunFiles) -> tuple[RunFiles, Redaction]:
    """The files of a run for a redacted page."""
    stored = read_object(directory / INPUTS, missing_ok=True)
    redaction = read_redaction(run.config, stored.get(EVALUATION_ROWS))
    return without(redaction, run), redaction


def masked_summary(
    directory: Path, summary: Mapping[str, Any], config: str, inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The summary and the path of a run for a redacted comparison.

    Args:
        config, inputs: its config.yaml and inputs.json.

    Raises:
        UserError: if the right answers are not known. A comparison without any text would be
            one without settings.
    """
    redaction = read_redaction(config, inputs.get(EVALUATION_ROWS))
    if redaction.unknown is not None:
        raise UserError(f"{directory}: cannot be redacted, since {redaction.unknown}")
    return _masked(redaction, summary), redaction.masked(str(directory))


def without(redaction: Redaction, run: RunFiles) -> RunFiles:
    """The files of a run with everything masked or hidden that must not be shown."""
    old = {(row.get("set"), row.get("id")): [str(row.get("before") or "")] for row in run.samples}
    samples = []
    for row in run.samples:
        shown = _masked(redaction, row)
        if row.get("set") in FORGOTTEN:
            before = [text for name in FORGOTTEN for text in old.get((name, row.get("id")), ())]
            _hide(shown, "before")
            if redaction.hides(row.get("id"), str(row.get("after") or ""), before):
                _hide(shown, "after")
        samples.append(shown)
    return dataclasses.replace(
        run, summary=_masked(redaction, run.summary), samples=samples,
        config=_masked_config(redaction, run.config),
    )  # fmt: skip


def redacted_evaluation(files: EvaluationFiles) -> tuple[EvaluationFiles, Redaction]:
    """The files of an evaluation for a redacted page."""
    redaction = read_redaction(files.config, files.summary["data"].get(EVALUATION_ROWS))
    return without_in_evaluation(redaction, files), redaction


def without_in_evaluation(redaction: Redaction, files: EvaluationFiles) -> EvaluationFiles:
    """The files of an evaluation with everything masked or hidden that must not be shown.

    A model whose name reveals something gets a number for a name.
    """
    names = {
        name: f"model {number}"
        for number, name in enumerate(files.models, 1)
        if redaction.masked(name) != name
    }
    old: defaultdict[Any, list[str]] = defaultdict(list)
    quality = files.of_part("quality")
    for row in quality.get(files.before or "", {}).get("answers", ()):
        if row.get("set") in FORGOTTEN:
            old[row.get("id")].append(str(row.get("text") or ""))

    def hidden(value: Any, always: bool) -> Any:
        """The value with answers to forget questions hidden."""
        if isinstance(value, list):
            return [hidden(item, always) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: hidden(item, always) for key, item in value.items()}
        if "texts" in found:
            found["texts"] = [HIDDEN for _ in found["texts"]]
        answered = found if found.get("set") in FORGOTTEN else found.get("worst")
        if isinstance(answered, dict) and isinstance(text := answered.get("text"), str):
            row = value.get("id")
            if always or redaction.hides(row, text, old.get(row, ())):
                _hide(answered, "text")
        return found

    parts = {model: hidden(own, always=model == files.before) for model, own in files.parts.items()}
    return EvaluationFiles(
        summary=_masked(redaction, files.summary, names),
        parts=_masked(redaction, parts, names),
        config=_masked_config(redaction, files.config),
    )


def hidden_example(example: Example) -> Example:
    """An example whose answers may be `HIDDEN`; then the other one has no marks."""
    before, after = (joined(spans) == HIDDEN for spans in (example.before, example.after))
    if not (before or after):
        return example
    shown = example.unmarked()
    return dataclasses.replace(
        shown, before=[] if before else shown.before, after=[] if after else shown.after,
        before_hidden=before, after_hidden=after,
    )  # fmt: skip


def _hide(row: dict[str, Any], key: str) -> None:
    """Hide the answer of a row under a key, with its marks."""
    row[key] = HIDDEN
    for marks in ("marks", f"marks_{key}"):
        if marks in row:
            row[marks] = []


def _masked(redaction: Redaction, value: Any, names: Mapping[str, str] | None = None) -> Any:
    """A JSON value whose strings are masked; `names` are replaced, as keys too."""
    names = names or {}
    match value:
        case str():
            return names.get(value) or (value if value == HIDDEN else redaction.masked(value))
        case list():
            return [_masked(redaction, item, names) for item in value]
        case dict():
            return {
                names.get(key, key): item if key in KEPT_KEYS else _masked(redaction, item, names)
                for key, item in value.items()
            }
        case _:
            return value


def _masked_config(redaction: Redaction, config: str) -> str:
    """A configuration whose values are masked, as YAML without escapes."""
    if redaction.masked(config) == config and config.isascii():
        return config
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError:
        return MASK
    masked = _masked(redaction, settings)
    return yaml.safe_dump(masked, allow_unicode=True, sort_keys=False, width=2**16)
