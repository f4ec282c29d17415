"""From a data set to token ids, with early checks of what could stop a run later."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pmc_jax.data.checks import named, too_long
from pmc_jax.data.dataset import Dataset
from pmc_jax.data.files import to_json
from pmc_jax.data.prompts import PromptTemplate, check_lengths
from pmc_jax.data.rows import EvaluationRow, ForgetQuestion, QuestionAnswer
from pmc_jax.errors import UserError
from pmc_jax.text.counts import counted

Row = TypeVar("Row", bound=ForgetQuestion | QuestionAnswer | EvaluationRow)
Encoded = TypeVar("Encoded")

EVALUATION_ROWS = "evaluation rows"
"""The name under which runs and evaluations record `rows_fingerprint`."""


@dataclasses.dataclass(frozen=True)
class EncodedData:
    """The token ids that training gets. None of them comes from a forget answer.

    Attributes:
        forget: the prompts of the forget questions.
        retain: the (prompt, answer with end token) pairs to keep.
    """

    forget: Sequence[Sequence[int]]
    retain: Sequence[tuple[Sequence[int], Sequence[int]]]


def encode(
    dataset: Dataset, template: PromptTemplate, max_length: int, vocab_size: int
) -> EncodedData:
    """Encode what training gets, and check the prompts of all evaluation sets too.

    Raises:
        UserError: naming the row, if a prompt is too long or a text cannot be encoded; if all
            prompts are the same; or if a token is not in the model's vocabulary.
    """

    def prompt(row: ForgetQuestion | QuestionAnswer | EvaluationRow) -> list[int]:
        return template.encode_prompt(row.question, row.system)

    def pair(row: QuestionAnswer) -> tuple[list[int], list[int]]:
        return template.encode_pair(row.question, row.answer, row.system)

    forget = encoded(dataset, "forget", dataset.forget, prompt)
    check_lengths([dataset.where("forget", row.id) for row in dataset.forget], forget, max_length)
    check_differ(dataset, forget)
    retain = encoded(dataset, "retain", dataset.retain, pair)
    prompts = [prompt for prompt, _ in retain]
    check_lengths([dataset.where("retain", row.id) for row in dataset.retain], prompts, max_length)
    used = {token for prompt, answer in retain for token in (*prompt, *answer)}
    used.update(token for prompt in forget for token in prompt)
    for name, rows in dataset.evaluation.items():
        prompts = encoded(dataset, name, rows, prompt)
        check_lengths([dataset.where(name, row.id) for row in rows], prompts, max_length)
        used.update(token for prompt in prompts for token in prompt)
    check_tokens(used, vocab_size)
    return EncodedData(forget, retain)


def encoded(
    dataset: Dataset, name: str, rows: Iterable[Row], encode_row: Callable[[Row], Encoded]
) -> list[Encoded]:
    """The rows of a set, encoded by `encode_row`.

    Raises:
        UserError: naming the row, for a text that cannot be encoded.
    """
    found = []
    for row in rows:
        try:
            found.append(encode_row(row))
        except UserError as error:
            raise UserError(f"{dataset.where(name, row.id)}: {error}") from None
    return found


def check_differ(dataset: Dataset, prompts: Sequence[Sequence[int]]) -> None:
    """Check that the forget prompts are not all the same.

    Raises:
        UserError: if they are, although the questions differ.
    """
    questions = {(row.question, row.system) for row in dataset.forget}
    if len(questions) > 1 and len(set(map(tuple, prompts))) == 1:
        raise UserError(
            f"all {len(prompts)} forget questions become the same prompt; expected a prompt "
            "template that contains the question, and a tokenizer that knows its characters"
        )


def special_token_warnings(dataset: Dataset, template: PromptTemplate) -> list[str]:
    """Warn of rows whose texts spell special tokens of the tokenizer, encoded as plain text.

    Answers to forget questions are not looked at.
    """
    texts: dict[str, list[str]] = {}
    for name, rows in (("forget", dataset.forget), ("retain", dataset.retain)):
        for row in rows:
            answer = row.answer if isinstance(row, QuestionAnswer) else ""
            whole = "\n".join((row.question, answer, row.system or ""))
            for token in template.special.found_in(whole):
                texts.setdefault(token, []).append(dataset.where(name, row.id))
    if not texts:
        return []
    found = list(dict.fromkeys(row for own in texts.values() for row in own))
    return [
        f"{counted(len(found), 'row spells', 'rows spell')} special tokens ({' '.join(texts)}), "
        f"which are encoded as plain text: {named(found)}"
    ]


def position_warnings(
    dataset: Dataset, template: PromptTemplate, max_length: int, most: int | None
) -> list[str]:
    """Warn of rows that are longer than the model's `most` positions; None: these are not known.

    Nothing is longer than `max_length`, so there is nothing to look for if that is within them.
    """
    if most is None or max_length <= most:
        return []
    lengths: dict[str, int] = {}
    for row in dataset.retain:
        prompt, answer = template.encode_pair(row.question, row.answer, row.system)
        lengths[dataset.where("retain", row.id)] = min(len(prompt) + len(answer), max_length)
    for name, rows in dataset.evaluation.items():
        for each in rows:
            prompt = template.encode_prompt(each.question, each.system)
            where = dataset.where(name, each.id)
            lengths[where] = max(len(prompt), lengths.get(where, 0))
    return too_long(lengths, most)


def check_tokens(used: Collection[int], vocab_size: int) -> None:
    """Check that every token is in the model's vocabulary.

    Raises:
        UserError: naming the largest token id, if it is not.
    """
    if (largest := max(used)) >= vocab_size:
        raise UserError(
            f"the tokenizer gives token id {largest}, but the model's vocabulary has "
            f"{vocab_size} tokens; expected a tokenizer and a model that belong together"
        )


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(to_json(value, ascii=True).encode()).hexdigest()


def fingerprints(dataset: Dataset, encoded: EncodedData) -> Mapping[str, str]:
    """SHA-256 hashes of the training and evaluation data, to detect changed files."""
    return {
        "forget questions": digest(encoded.forget),
        "retain pairs": digest(encoded.retain),
        EVALUATION_ROWS: rows_fingerprint(dataset.evaluation),
    }


def rows_fingerprint(sets: Mapping[str, Sequence[EvaluationRow]]) -> str:
    """SHA-256 hash of evaluation sets, the same in a run and in an evaluation."""
    return digest({name: list(map(dataclasses.astuple, sets[name])) for name in sorted(sets)})
