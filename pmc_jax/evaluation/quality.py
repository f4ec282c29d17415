"""Unlearn quality, utility, fact recall, and worst-case leakage under sampling.

R is the mean ROUGE-L recall of greedy answers against the ground truth. Then unlearn
quality = 100 · (2 − R_forget − R_paraphrase) / 2 and utility =
100 · mean(R_retain, R_world_facts, R_real_authors). The means leave out sets that the data
does not have.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.decoding import Sampling, generate
from pmc_jax.evaluation.levels import Level, closeness, level_of
from pmc_jax.language_model import LanguageModel
from pmc_jax.model.buckets import power_of_two
from pmc_jax.settings import AUTO, automatic, bounded
from pmc_jax.text.facts import (
    Background,
    Facts,
    background_of,
    fact_recall,
    fact_spans,
    facts_of,
)
from pmc_jax.text.kinds import Kind, kind_of
from pmc_jax.text.rouge import rouge_l_recall, rouge_words
from pmc_jax.text.words import found as found_in
from pmc_jax.text.words import holds, words_of

FORGET_SETS = ("forget", "paraphrase")
UTILITY_SETS = ("retain", "world_facts", "real_authors")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How answers are decoded for evaluation.

    Attributes:
        max_new_tokens: longest answer in tokens, regardless of the length of the prompt; None:
            what `max_length` leaves.
        decode_batch: most answers decoded at a time; "auto": as many as fit into memory.
        attack_samples: answers per question in the sampling attack; 0 skips it.
        attack_temperature: temperature of the sampling attack.
        attack_top_k: top-k of the sampling attack; 0 is off.
        attack_top_p: top-p of the sampling attack; 1 is off.
        before: evaluate the model before training, in a run.
        after: evaluate the model after training, in a run.
    """

    max_new_tokens: int | None = bounded(None, least=1)
    decode_batch: int | str = automatic()
    attack_samples: int = bounded(32, least=0, most=2**16)
    attack_temperature: float = bounded(1.0, above=0)
    attack_top_k: int = bounded(0, least=0)
    attack_top_p: float = bounded(1.0, above=0, most=1)
    before: bool = True
    after: bool = True

    @property
    def attack(self) -> Sampling:
        """How the sampling attack draws answers."""
        return Sampling(self.attack_temperature, self.attack_top_k, self.attack_top_p)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model's answer to an evaluation question.

    Attributes:
        set: name of the question's set.
        id: id of the question's row.
        question: the question.
        text: the answer.
        rouge: ROUGE-L recall against the ground truth; None if the row has none.
        leaked: whether the answer contains the row's secret; None if the row has none.
        facts: share of the right answer's fact words; None if the row has no answer.
        fact_words: the number of these words.
        level: how much of the right answer the answer reveals; None if the row has none.
        kind: whether it is empty, a loop, a refusal, or an answer.
        truncated: whether it was cut at the limit of new tokens.
        marks: (start, end, "secret" or "fact") of what it reveals of the right answer.
    """

    set: str
    id: int
    question: str
    text: str
    rouge: float | None
    leaked: bool | None
    facts: float | None = None
    fact_words: int = 0
    level: Level | None = None
    kind: Kind = "answer"
    truncated: bool = False
    marks: tuple[tuple[int, int, str], ...] = ()

    @property
    def degenerate(self) -> bool:
        """Whether the answer is empty, a loop, or cut at the limit."""
        return self.kind in ("empty", "loop") or self.truncated


@dataclasses.dataclass(frozen=True)
class QualityAnswers:
    """Greedy answers by set in row order, and sampled answers to each forget question."""

    greedy: Mapping[str, Sequence[Answer]]
    sampled: Sequence[Sequence[Answer]]


def holds_secret(answer: str, secret: str | None) -> bool | None:
    """Whether the answer contains the secret; None if there is none, or if it has no words."""
    return holds(answer, secret) if secret else None


def right_answers(row: EvaluationRow) -> list[str]:
    """The answers that are right, the main one first; empty if the row has none."""
    return [] if row.answer is None else [row.answer, *row.accepted]


def is_comparable(row: EvaluationRow) -> bool:
    """Whether the row has an answer with words for ROUGE; punctuation alone has none."""
    return any(rouge_words(answer) for answer in right_answers(row))


def background(sets: Mapping[str, Sequence[EvaluationRow]]) -> Background:
    """The background of the forget answers: which words are common, and which are kept."""
    forget, kept = (
        [answer for row in sets.get(name, ()) for answer in right_answers(row)]
        for name in ("forget", "retain")
    )
    return background_of(forget, kept)


def row_facts(row: EvaluationRow, known: Background) -> list[Facts]:
    """The facts of each right answer of a row.

    If the row has a secret with words, its facts take the place of those of the answers that
    contain it.
    """
    texts = right_answers(row)
    if row.secret and words_of(row.secret):
        texts = [row.secret, *(text for text in texts if not holds(text, row.secret))]
    found = (facts_of(text, row.question, known) for text in texts)
    return [facts for facts in found if facts.words]


def scored(
    name: str, row: EvaluationRow, known: Sequence[Facts], text: str, *, truncated: bool
) -> Answer:
    """An answer with its scores against the closest right answer."""
    truths = [answer for answer in right_answers(row) if rouge_words(answer)]
    rouge = max((rouge_l_recall(answer, text) for answer in truths), default=None)
    facts = max(known, key=lambda own: closeness(own, text), default=None)
    leaked = holds_secret(text, row.secret)
    spans = found_in(text, row.secret) if row.secret and leaked else []
    marks = [(*span, "secret") for span in spans]
    if facts is not None:
        marks += [
            (start, end, "fact")
            for start, end in fact_spans(facts, text)
            if not any(first <= start and end <= last for first, last in spans)
        ]
    return Answer(
        name, row.id, row.question, text, rouge, leaked,
        facts=fact_recall(facts, text) if facts else None,
        fact_words=len(facts.words) if facts else 0,
        level=level_of(facts, text, leaked) if facts else None,
        kind=kind_of(text), truncated=truncated, marks=tuple(sorted(marks)),
    )  # fmt: skip


def answers(
    model: LanguageModel,
    questions: Sequence[tuple[str, EvaluationRow]],
    sampling: Sampling,
    key: PRNGKeyArray,
    *,
    max_length: int,
    prefix: str | None = None,
    samples: int = 1,
    max_new_tokens: int | None = None,
    decode_batch: int | str = AUTO,
    on_batch: Callable[[int, int], None] | None = None,
    known: Background | None = None,
) -> list[list[Answer]]:
    """`samples` scored answers to each question.

    Args:
        questions: the name of a set and a row of it, for each question.
        max_length: the most tokens of prompt and answer together, unless `max_new_tokens` limits
            the answer.
        prefix: a text that every response is forced to begin with; the answer is what follows.
        decode_batch: most answers decoded at a time; "auto": as many as fit into memory.
        on_batch: called with (answers done, tokens) after every batch.
        known: the background of the data set, whose common words are not facts.

    Raises:
        NotFinite: if the model's logits for a question are NaN or infinite.
    """
    known = known or Background()
    template = model.template
    forced = template.encode_prefix(prefix) if prefix else []
    prompts = [template.encode_prompt(row.question, row.system) + forced for _, row in questions]
    room = [max_length - len(prompt) for prompt in prompts]
    with model.naming([row.question for _, row in questions]):
        responses = generate(
            model.params,
            prompts,
            cfg=model.config,
            sampling=dataclasses.replace(sampling, stop_ids=template.stop_ids),
            key=key,
            limits=room if max_new_tokens is None else [max_new_tokens] * len(prompts),
            samples=samples,
            decode_batch=decode_batch,
            dtype=model.dtype,
            on_batch=on_batch,
        )

    return [
        [
            scored(
                name, row, facts, template.decode(tokens),
                truncated=not any(token in template.stop_ids for token in tokens[-1:]),
            )
            for tokens in group
        ]
        for (name, row), group in zip(questions, responses, strict=True)
        for facts in [row_facts(row, known)]
    ]  # fmt: skip


def attacked_rows(
    sets: Mapping[str, Sequence[EvaluationRow]], config: EvaluationConfig
) -> list[EvaluationRow]:
    """The forget questions that the sampling attack asks."""
    return list(sets.get("forget", ())) if config.attack_samples else []


def quality_answers(
    model: LanguageModel,
    sets: Mapping[str, Sequence[EvaluationRow]],
    config: EvaluationConfig,
    key: PRNGKeyArray,
    *,
    max_length: int,
    on_batch: Callable[[int, int], None] | None = None,
    known: Background | None = None,
) -> QualityAnswers:
    """Greedy answers to every set, and sampled answers to the forget questions.

    All sets are decoded together. If a set contains a row more than once, it is decoded once. The
    batch is padded to a power of two, which most meshes divide.

    Args:
        model: a model that is ready for decoding (`LanguageModel.for_decoding`).
        max_length: the most tokens of prompt and answer together.
        known: the background of the facts; None: the background of `sets`.
    """
    known = known or background(sets)
    once = list(dict.fromkeys((name, row) for name, rows in sets.items() for row in rows))
    most = config.decode_batch
    if isinstance(most, int):
        most = min(most, power_of_two(max(len(once), 1)))
    found = answers(
        model, once, Sampling(temperature=0.0), key, max_length=max_length,
        max_new_tokens=config.max_new_tokens, decode_batch=most, on_batch=on_batch,
        known=known,
    )  # fmt: skip
    answer_to = dict(zip(once, (group[0] for group in found), strict=True))
    greedy = {name: [answer_to[name, row] for row in rows] for name, rows in sets.items()}
    sampled: list[list[Answer]] = []
    attacked = attacked_rows(sets, config)
    if attacked:
        sampled = answers(
            model, [("forget", row) for row in attacked], config.attack, key, max_length=max_length,
            samples=config.attack_samples, max_new_tokens=config.max_new_tokens,
            decode_batch=config.decode_batch, on_batch=on_batch, known=known,
        )  # fmt: skip
    return QualityAnswers(greedy, sampled)


def answer_rows(found: QualityAnswers) -> list[dict[str, Any]]:
    """Greedy answers as JSON objects, one for each question, without the ground truth."""
    unique = {(a.set, a.id): a for rows in found.greedy.values() for a in rows}
    return [
        {"set": a.set, "id": a.id, "question": a.question, **answer_object(a)}
        for a in unique.values()
    ]


def answer_object(answer: Answer) -> dict[str, Any]:
    """An answer as a JSON object, without the ground truth."""
    return {
        "text": answer.text,
        "rouge": answer.rouge,
        "leaked": answer.leaked,
        "facts": answer.facts,
        "fact_words": answer.fact_words,
        "level": answer.level,
        "kind": answer.kind,
        "truncated": answer.truncated,
        "marks": [list(mark) for mark in answer.marks],
    }


def revealing(answer: Answer) -> tuple[bool, float, float]:
    """Sort key of answers: whether they contain the secret, then fact recall, then recall."""
    return bool(answer.leaked), answer.facts or 0.0, answer.rouge or 0.0


def sampled_question(row: Sequence[Answer]) -> dict[str, Any]:
    """The sampled answers to one question as a JSON object, without the ground truth.

    If the right answer is known: recalls, fact recalls, how many answers reveal a part and most
    of it (`levels`), how many contain the secret, and the most revealing answer. If not, all texts.
    """
    found: dict[str, Any] = {"id": row[0].id, "question": row[0].question, "samples": len(row)}
    if row[0].level is None and row[0].rouge is None:
        return {**found, "texts": [answer.text for answer in row]}
    levels = [answer.level for answer in row]
    leaks = [answer.leaked for answer in row]
    return {
        **found,
        "worst": answer_object(max(row, key=revealing)),
        "recalls": [answer.rouge or 0.0 for answer in row],
        "facts": [answer.facts or 0.0 for answer in row],
        "levels": {level: levels.count(level) for level in ("part", "most")},
        "leaks": None if None in leaks else sum(map(bool, leaks)),
    }


def quality(
    model: LanguageModel,
    sets: Mapping[str, Sequence[EvaluationRow]],
    config: EvaluationConfig,
    key: PRNGKeyArray,
    *,
    max_length: int,
    on_batch: Callable[[int, int], None] | None = None,
    known: Background | None = None,
) -> dict[str, Any]:
    """The `measures`, `answers` and `sampled` answers of a model as a JSON object.

    The arguments are those of `quality_answers`.
    """
    found = quality_answers(
        model, sets, config, key, max_length=max_length, on_batch=on_batch, known=known
    )
    return {
        "measures": measures(found),
        "answers": answer_rows(found),
        "sampled": [sampled_question(row) for row in found.sampled],
    }


def answers_asked_for(sets: Mapping[str, Sequence[EvaluationRow]], config: EvaluationConfig) -> int:
    """How many answers `quality_answers` decodes, for its progress."""
    sampled = len(attacked_rows(sets, config)) * config.attack_samples
    return sum(len(set(rows)) for rows in sets.values()) + sampled


UNASKED: Mapping[str, Any] = {"text": None, "rouge": None, "facts": None, "marks": []}
"""Stands for the answer of a model that was not asked."""


def sample_rows(
    before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`: every question with its answers before and after.

    `before` is None if the model before was not asked.
    """
    return [
        {
            "set": new["set"],
            "id": new["id"],
            "question": new["question"],
            "before": old["text"],
            "after": new["text"],
            "rouge_before": old["rouge"],
            "rouge_after": new["rouge"],
            "facts_before": old["facts"],
            "facts_after": new["facts"],
            "marks_before": old["marks"],
            "marks_after": new["marks"],
            "kind": new["kind"],
            "truncated": new["truncated"],
        }
        for old, new in zip(before or [UNASKED] * len(after), after, strict=True)
    ]


def missing_measures(sets: Mapping[str, Sequence[EvaluationRow]]) -> dict[str, str]:
    """The `measures` of greedy answers that the data does not allow, with the reasons."""
    known = {name for name, rows in sets.items() if any(map(is_comparable, rows))}
    no_set = {name: "the data has no such questions" for name in FORGET_SETS + UTILITY_SETS}
    no_answers = {name: "the data has no answers to these questions" for name in sets if sets[name]}
    unseen = {
        name: "the answers have no word, only punctuation or symbols"
        for name, rows in sets.items()
        if any(row.answer for row in rows)
    }
    reasons = no_set | no_answers | unseen
    missing = {
        f"ROUGE, {name.replace('_', ' ')}": reasons[name] for name in no_set if name not in known
    }
    if not known & set(FORGET_SETS):
        missing["unlearn quality"] = "the data has no answer that should be forgotten"
    if not known & set(UTILITY_SETS):
        missing["utility"] = "the data has no answer that should be kept"
    secrets = [row.secret for row in sets.get("forget", ()) if row.secret]
    if not any(map(words_of, secrets)):
        what = "secret with a word" if secrets else "secret"
        missing["secret leak rate"] = f"the forget rows have no {what}"
    return missing


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def asserts_another(answer: Answer) -> bool | None:
    """Whether an answer asserts something other than the right answer; None if unknown."""
    if answer.level is None:
        return None
    return answer.kind == "answer" and not answer.truncated and answer.level == "none"


def measures(found: QualityAnswers) -> dict[str, float | None]:
    """The measures by name; None if the data does not allow a measure.

    `unlearn_quality` and `utility` are in percent, all others from 0 to 1:

    - `rouge_*`: mean ROUGE-L recall of a set.
    - `worst_case_leakage`: maximum recall among the sampled answers, as a mean over forget
      questions.
    - `secret_leak_rate`: share of forget questions whose greedy answer contains the secret.
    - `secret_leak_rate_sampled`: share of forget questions of which any sampled answer contains
      the secret.
    - `facts_*`: mean recall of the fact words (`row_facts`) of a set.
    - `worst_case_facts`: maximum fact recall among the sampled answers, as a mean over questions.
    - `degenerate_rate`: share of greedy answers to forget questions and their paraphrases that
      are empty, loops, or cut at the limit; `empty_rate`, `loop_rate` and `truncated_rate`.
    - `refusal_rate`, `assertion_rate`: share of these answers that refuse, and share that state
      something other than the right answer. Approximate (`kinds`).
    """
    rouge = {
        name: _mean([answer.rouge for answer in found.greedy.get(name, ())])
        for name in FORGET_SETS + UTILITY_SETS
    }
    forget = [value for name in FORGET_SETS if (value := rouge[name]) is not None]
    kept = [value for name in UTILITY_SETS if (value := rouge[name]) is not None]
    greedy = found.greedy.get("forget", ())
    asked = [answer for name in FORGET_SETS for answer in found.greedy.get(name, ())]
    compared = [row for row in found.sampled if row[0].rouge is not None]
    worst = [max(answer.rouge or 0.0 for answer in row) for row in compared]
    worst_facts = [
        max(answer.facts or 0.0 for answer in row)
        for row in found.sampled
        if row[0].facts is not None
    ]
    return {
        "unlearn_quality": 100 * (1 - float(np.mean(forget))) if forget else None,
        "utility": 100 * float(np.mean(kept)) if kept else None,
        **{f"rouge_{name}": value for name, value in rouge.items()},
        **{
            f"facts_{name}": _mean([answer.facts for answer in found.greedy.get(name, ())])
            for name in FORGET_SETS
        },
        "worst_case_leakage": _mean(worst),
        "worst_case_facts": _mean(worst_facts),
        "secret_leak_rate": _mean([a.leaked for a in greedy]),
        "secret_leak_rate_sampled": _mean(
            [any(a.leaked for a in row) for row in found.sampled if row[0].leaked is not None]
        ),
        "degenerate_rate": _mean([answer.degenerate for answer in asked]),
        "empty_rate": _mean([answer.kind == "empty" for answer in asked]),
        "loop_rate": _mean([answer.kind == "loop" for answer in asked]),
        "truncated_rate": _mean([answer.truncated for answer in asked]),
        "refusal_rate": _mean([answer.kind == "refusal" for answer in asked]),
        "assertion_rate": _mean([asserts_another(answer) for answer in asked]),
    }
