"""From a data set to token ids, with early checks of what could stop a run later."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pmc_jax.data.dataset import Dataset
from pmc_jax.data.prompts import PromptTemplate, check_lengths
from pmc_jax.errors import UserError


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
        UserError: if a prompt is too long, or a token is not in the model's vocabulary.
    """
    forget = [template.encode_prompt(row.question, row.system) for row in dataset.forget]
    check_lengths("forget", [row.id for row in dataset.forget], forget, max_length)
    retain = [template.encode_pair(row.question, row.answer, row.system) for row in dataset.retain]
    prompts = [prompt for prompt, _ in retain]
    check_lengths("retain", [row.id for row in dataset.retain], prompts, max_length)
    used = {token for prompt, answer in retain for token in (*prompt, *answer)}
    used.update(token for prompt in forget for token in prompt)
    for name, rows in dataset.evaluation.items():
        prompts = [template.encode_prompt(row.question, row.system) for row in rows]
        check_lengths(name, [row.id for row in rows], prompts, max_length)
        used.update(token for prompt in prompts for token in prompt)
    check_tokens(used, vocab_size)
    return EncodedData(forget, retain)


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
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def fingerprints(dataset: Dataset, encoded: EncodedData) -> Mapping[str, str]:
    """SHA-256 hashes of the training and evaluation data, to detect changed files."""
    evaluation = {
        name: [dataclasses.astuple(row) for row in rows]
        for name, rows in dataset.evaluation.items()
    }
    return {
        "forget questions": digest(encoded.forget),
        "retain pairs": digest(encoded.retain),
        "evaluation rows": digest(evaluation),
    }
