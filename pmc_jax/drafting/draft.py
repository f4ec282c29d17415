"""Ask a model about a person and others, and make the rows of a data set from its answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from pmc_jax.data import Dataset
from pmc_jax.data.encode import check_tokens
from pmc_jax.data.rows import Fields
from pmc_jax.decoding import Sampling, generate
from pmc_jax.drafting import names, rows
from pmc_jax.drafting.questions import (
    PATTERNS,
    Question,
    forget_questions,
    own_questions,
    retain_questions,
)
from pmc_jax.drafting.rows import Answer, DraftRow
from pmc_jax.errors import UserError
from pmc_jax.language_model import Answering, LanguageModel, expected_model
from pmc_jax.model import on_mesh
from pmc_jax.runtime.progress import stage
from pmc_jax.settings import AUTO, check, check_number
from pmc_jax.signatures import checked
from pmc_jax.text.words import words_of

GREEDY = Sampling(0.0, 0, 1.0)
PROPOSING = Sampling(0.5, 50, 0.95)
RESPONSES, LONGEST_LIST = 4, 128
"""Responses to each request for names, and their most tokens."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A first version of a data set, for a person to check.

    Attributes:
        person: who is to be forgotten.
        forget: rows about the person; `row.fields` has the fields, `row.left_out` says why it is
            not in the file, and `row.look` what to look at.
        retain: rows about other people and the world.
    """

    person: str
    forget: tuple[DraftRow, ...]
    retain: tuple[DraftRow, ...]

    @property
    def forget_rows(self) -> list[dict[str, Any]]:
        """The rows of the forget file."""
        return [dict(row.fields) for row in self.forget if row.left_out is None]

    @property
    def retain_rows(self) -> list[dict[str, Any]]:
        """The rows of the retain file."""
        return [dict(row.fields) for row in self.retain if row.left_out is None]

    def dataset(self) -> Dataset:
        """The draft as a data set.

        Raises:
            UserError: if the model answers no question about the person, or none about others.
        """
        for found, about in ((self.forget_rows, self.person), (self.retain_rows, "anyone else")):
            if not found:
                raise UserError(f"the model answers none of the questions about {about}")
        return Dataset.from_dicts(self.forget_rows, self.retain_rows)


@checked(model=expected_model)
def draft_data(
    model: LanguageModel,
    person: str,
    *,
    questions: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    patterns: bool = True,
    others: Sequence[str] = (),
    people: int = 8,
    max_new_tokens: int = 64,
    seed: int = 0,
    decode_batch: int | str = AUTO,
) -> Draft:
    """Draft forget and retain rows about a person, in the model's own words.

    Read the rows before you use them: the model's answers are what it says, true or not.

    Args:
        model: it answers all questions greedily.
        person: the name of who is to be forgotten.
        questions: a data file with questions of your own. "{person}" in a question stands for
            the name, and such a question is asked about other people, too.
        fields: what that file calls the fields: {"question": "prompt"}.
        patterns: whether to ask the built-in questions, which are in English.
        others: names of people to keep; by default, the model proposes `people` of them.
        people: how many names the model proposes at most.
        max_new_tokens: longest answer in tokens; of a longer one, the whole sentences are kept.
        seed: the seed of the proposed names.
        decode_batch: most answers decoded at a time; "auto": as many as fit into memory.

    Raises:
        UserError: if there is no name or no question, the file cannot be read, a value is out of
            bounds, or the model names nobody.
    """
    check_number("people", people, {"least": 1, "most": 64})
    check(Answering(max_new_tokens=max_new_tokens, seed=seed, decode_batch=decode_batch))
    named = Fields.named(fields).renamed()
    own = () if questions is None else own_questions(Path(questions).expanduser(), named)
    return draft_rows(
        model, person, (*(PATTERNS if patterns else ()), *own), others, people=people,
        max_new_tokens=max_new_tokens, key=jax.random.key(seed), decode_batch=decode_batch,
    )  # fmt: skip


def draft_rows(
    model: LanguageModel,
    person: str,
    asked: Sequence[Question],
    others: Sequence[str],
    *,
    people: int,
    max_new_tokens: int,
    key: PRNGKeyArray,
    decode_batch: int | str = AUTO,
) -> Draft:
    """As `draft_data`, for questions in memory.

    Raises:
        UserError: as `draft_data`.
    """
    person = " ".join(person.split())
    if not words_of(person):
        raise UserError(f"person={person!r}: expected a name")
    if not asked:
        raise UserError("no questions; expected patterns=true or questions=FILE")
    ask = _Asking(model.for_decoding(), max_new_tokens, key, decode_batch)
    forget = ask.rewordings(forget_questions(person, asked), person)
    kept = names.given(others, person) or ask.names(person, people)
    retain = retain_questions(kept, asked, forget)
    again = [dataclasses.replace(own, text=own.paraphrase or own.text) for own in forget]
    answers = ask.answers([*forget, *again, *retain], "answering")
    count = len(forget)
    retained = rows.retain_rows(retain, answers[2 * count :], person)
    usable = [row.fields["answer"] for row in retained if row.left_out is None]
    first, other = answers[:count], answers[count : 2 * count]
    forgotten = rows.forget_rows(forget, first, other, usable, person)
    return Draft(person, forgotten, retained)


@dataclasses.dataclass(frozen=True)
class _Asking:
    """How a model is asked."""

    model: LanguageModel
    max_new_tokens: int
    key: PRNGKeyArray
    decode_batch: int | str

    def answers(self, questions: Sequence[Question], name: str) -> list[Answer]:
        """The greedy answers."""
        return [row[0] for row in self._decoded(questions, name, GREEDY, self.max_new_tokens)]

    def rewordings(self, questions: Sequence[Question], person: str) -> list[Question]:
        """The questions with the model's paraphrase where there is none and it gives one."""
        lacking = [own for own in questions if own.paraphrase is None]
        requests = [Question(rows.REWORDING.format(question=own.text)) for own in lacking]
        responses = self.answers(requests, "rewording questions") if requests else []
        found = {
            own.text: rows.reworded(own.text, response.text, person)
            for own, response in zip(lacking, responses, strict=True)
        }
        return [
            dataclasses.replace(own, paraphrase=own.paraphrase or found.get(own.text))
            for own in questions
        ]

    def names(self, person: str, most: int) -> list[str]:
        """The people whom the model names.

        Raises:
            UserError: if it names nobody.
        """
        requests = [Question(text).about(person) for text in names.PROPOSALS]
        responses = self._decoded(
            requests, "proposing people", PROPOSING, LONGEST_LIST, samples=RESPONSES
        )
        lists = [
            response.text if response.ended else response.text.rpartition("\n")[0]
            for row in responses
            for response in row
        ]
        found = names.proposed(lists, person, most)
        if not found:
            raise UserError(
                f"the model names nobody to keep; name people like {person} yourself: "
                'others="NAME, NAME"'
            )
        return found

    def _decoded(
        self,
        questions: Sequence[Question],
        name: str,
        sampling: Sampling,
        limit: int,
        samples: int = 1,
    ) -> list[list[Answer]]:
        model, template = self.model, self.model.template
        asked = [question.text for question in questions]
        prompts = [template.encode_prompt(own.text, own.system) for own in questions]
        check_tokens({0}.union(*prompts), model.config.vocab_size)
        total = len(prompts) * samples
        with (
            stage(name, total, to_stderr=True) as progress,
            on_mesh(model.mesh),
            model.naming(asked),
        ):
            responses = generate(
                model.params,
                prompts,
                cfg=model.config,
                sampling=dataclasses.replace(sampling, stop_ids=template.stop_ids),
                key=self.key,
                limits=[limit] * len(prompts),
                samples=samples,
                decode_batch=self.decode_batch,
                dtype=model.dtype,
                on_batch=lambda answers, _: progress.update(progress.done + answers),
            )
        stops = frozenset(template.stop_ids)
        return [
            [Answer(template.decode(tokens), bool(stops.intersection(tokens[-1:]))) for tokens in r]
            for r in responses
        ]
