"""Forget answers, and what is preferred to them, as training targets.

None of it is for PMC: nothing here is called in a PMC run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pmc_jax.data.batches import refusal_draw
from pmc_jax.data.encode import EncodedData, check_tokens, digest
from pmc_jax.data.load import data_files
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.data.records import read_records
from pmc_jax.data.rows import DataConfig, ForgetPair
from pmc_jax.errors import UserError
from pmc_jax.training.alternatives import read_alternatives
from pmc_jax.unlearning.config import (
    AltPOConfig,
    DPOConfig,
    FineTuneConfig,
    IDKConfig,
    MethodConfig,
    PMCConfig,
    RetainOnlyConfig,
    has_retain_term,
)

DEFAULT_REFUSAL = "I don't know."

Pair = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class MethodData:
    """What a method other than PMC trains on: (prompt, answer with end token) token ids.

    Attributes:
        visited: how many questions an epoch visits.
        answers: the answer to each of them; empty for a method without.
        preferred: what is preferred to each answer, one or more that take turns by epoch: a
            refusal for DPO, alternatives for AltPO; empty for others.
        retain: what the retain loss draws from; empty for a method without.
    """

    visited: int
    answers: Sequence[Pair]
    preferred: Sequence[Sequence[Pair]]
    retain: Sequence[Pair]


def method_data(
    method: MethodConfig,
    data: DataConfig,
    encoded: EncodedData,
    template: PromptTemplate,
    vocab_size: int,
    seed: int,
) -> MethodData:
    """Load and encode what `method` is trained on; forget answers only where it needs them.

    Alternatives that the target model is yet to give are added by `with_alternatives`.

    Raises:
        UserError: naming the row without an answer, or what is wrong with a file of refusals
            or alternatives.
    """
    questions = encoded.forget
    retain = encoded.retain if has_retain_term(method) else []

    def answers() -> list[Pair]:
        rows = load_forget_pairs(data)
        found = [template.encode_answer(row.answer) for row in rows]
        check_tokens({token for answer in found for token in answer}, vocab_size)
        return list(zip(questions, found, strict=True))

    def refusals(path: str | None) -> list[Pair]:
        texts = load_refusals(data, path)
        drawn = refusal_draw(seed, len(questions), len(texts))
        found = [template.encode_answer(texts[i]) for i in drawn]
        check_tokens({token for answer in found for token in answer}, vocab_size)
        return list(zip(questions, found, strict=True))

    match method:
        case PMCConfig():
            raise TypeError("PMC is never trained on forget answers")
        case FineTuneConfig(pairs=pairs):
            chosen = (answers() if pairs != "retain" else []) + (
                list(encoded.retain) if pairs != "forget" else []
            )
            return MethodData(len(chosen), chosen, [], [])
        case RetainOnlyConfig():
            return MethodData(len(questions), [], [], retain)
        case IDKConfig(refusals=path):
            return MethodData(len(questions), refusals(path), [], retain)
        case DPOConfig(refusals=path):
            preferred = [[refusal] for refusal in refusals(path)]
            return MethodData(len(questions), answers(), preferred, retain)
        case AltPOConfig(alternatives=str(path)):
            texts = read_alternatives(path, load_forget_pairs(data))
            known = MethodData(len(questions), answers(), [], retain)
            return with_alternatives(known, texts, template, vocab_size)
    return MethodData(len(questions), answers(), [], retain)


def with_alternatives(
    data: MethodData, texts: Sequence[Sequence[str]], template: PromptTemplate, vocab_size: int
) -> MethodData:
    """The same data with alternative answers to each question preferred to its answer."""
    preferred = [
        [(prompt, template.encode_answer(text)) for text in own]
        for (prompt, _), own in zip(data.answers, texts, strict=True)
    ]
    check_tokens({t for own in preferred for _, answer in own for t in answer}, vocab_size)
    return dataclasses.replace(data, preferred=preferred)


def load_forget_pairs(cfg: DataConfig) -> tuple[ForgetPair, ...]:
    """The forget file's rows with their answers.

    Raises:
        UserError: naming the first row without one.
    """
    return tuple(
        ForgetPair(i, r.text("question"), r.text("answer"), r.optional_text("system"))
        for i, r in enumerate(read_records(data_files(cfg).forget))
    )


def load_refusals(cfg: DataConfig, path: str | None) -> list[str]:
    """The refusals in the file `path`, or the data set's, or "I don't know."."""
    if path is None:
        file = data_files(cfg).refusals
        if file is None:
            return [DEFAULT_REFUSAL]
    else:
        file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"method.refusals={file}: cannot be read ({error})") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise UserError(f"method.refusals={file}: no refusals; expected one a line")


def target_fingerprints(data: MethodData) -> Mapping[str, str]:
    """SHA-256 of what a method is trained on besides questions and retain pairs."""
    return {
        "answers trained on": digest([answer for _, answer in data.answers]),
        "preferred answers": digest([[answer for _, answer in own] for own in data.preferred]),
    }
