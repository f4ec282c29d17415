"""The types of a data set's rows.

A forget row has three types on purpose. PMC gets a `ForgetQuestion`, which has no answer, so
a ground-truth answer cannot reach the optimiser by mistake. Evaluation gets an
`EvaluationRow`. Only a method that is defined on forget answers gets a `ForgetPair`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pmc_jax.errors import UserError
from pmc_jax.settings import bounded, one_of, path_to


@dataclasses.dataclass(frozen=True)
class Fields:
    """The names of the columns, or of the keys of JSON objects, in your own files.

    "answers.text" is the key `text` of the column `answers`. A file without the column that is
    named here may have the column with the field's own name.

    Attributes:
        question: column of the question.
        answer: column of the answer, or of a list of right answers, the main one first.
        system: column of the system prompt for the question.
        secret: column of the phrase of the answer that the model must not reveal.
        paraphrased_question: column of the question in other words.
        paraphrased_answer: column of the answer in other words.
        perturbed_answer: column of wrong answers.
        variants: column of further wordings of the question.
        messages: column of chats.
    """

    question: str = "question"
    answer: str = "answer"
    system: str = "system"
    secret: str = "secret"
    paraphrased_question: str = "paraphrased_question"
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"
    variants: str = "variants"
    messages: str = "messages"

    @classmethod
    def named(cls, fields: Mapping[str, str] | None) -> "Fields":
        """The fields with these columns; the others have their own names.

        Raises:
            UserError: for a name that is not a field.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := set(fields or {}).difference(known):
            names = ", ".join(sorted(map(repr, unknown)))
            raise UserError(f"fields: no field {names}; the fields are {', '.join(known)}")
        return cls(**(fields or {}))

    def renamed(self) -> dict[str, str]:
        """The column of each field whose column has another name, by field."""
        return {k: name for k, name in dataclasses.asdict(self).items() if name != k}


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """How a file of questions is read."""

    fields: Fields = dataclasses.field(default_factory=Fields)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the questions and answers come from.

    Attributes:
        format: "tofu": files named and laid out like TOFU's; "files": your own files.
        path: directory of the files; "bundled": the small world in the package; None:
            download `hub`, for format=tofu.
        hub: Hugging Face data set in TOFU's format.
        forget: what to forget: a split of TOFU, or your own file.
        retain: what to retain: a split of TOFU, or your own file.
        world_facts: file with questions about the world, for utility.
        real_authors: file with questions about real people, for utility.
        retain_rows: retain examples to evaluate, drawn with replacement; None: each once.
        holdout: file like `forget` that the model has never seen, for membership inference.
        text: file with unrelated text, one paragraph per line, for side effects.
        allow_overlap: allow forget questions that are also in `retain`, whose answers are
            trained on.

    For format=tofu, the last four files are found by their names in TOFU if they are None:
    holdout10 belongs to forget10, and text.txt has the text. Without a text, side effects are
    measured on the questions and answers of `world_facts` and `real_authors`.
    """

    format: str = one_of("tofu", "tofu", "files")
    path: str | None = path_to(None)
    hub: str = "locuslab/TOFU"
    forget: str = path_to("forget10")
    retain: str = path_to("retain90")
    world_facts: str | None = path_to(None)
    real_authors: str | None = path_to(None)
    retain_rows: int | None = bounded(400, least=1)
    holdout: str | None = path_to(None)
    text: str | None = path_to(None)
    allow_overlap: bool = False
    fields: Fields = dataclasses.field(default_factory=Fields)


def data_config(settings: Mapping[str, Any]) -> DataConfig:
    """The configuration that a config.yaml holds under `data`.

    Raises:
        TypeError: if a key is unknown.
    """
    fields = Fields(**settings.get("fields", {}))
    return DataConfig(**{**settings, "fields": fields})


@dataclasses.dataclass(frozen=True)
class ForgetQuestion:
    """A question whose answer must be forgotten; `id` is its index in the forget file."""

    id: int
    question: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class ForgetPair:
    """A forget question with its true answer, for methods that train on it; never for PMC."""

    id: int
    question: str
    answer: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class QuestionAnswer:
    """A pair that the model must keep; `id` is its index in the retain file."""

    id: int
    question: str
    answer: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """A question with its ground truth, for evaluation only.

    Attributes:
        id: the row's index in its file.
        answer: the ground truth; None if the forget file has questions only.
        accepted: further answers that are as right as `answer`.
        secret: the phrase of the answer that the model must not reveal, if known.
        perturbed: wrong answers, worded like `paraphrased` if that is given.
        paraphrased: the true answer in other words.
        variants: the question in other words, apart from the paraphrase set's.
    """

    id: int
    question: str
    answer: str | None
    secret: str | None = None
    perturbed: tuple[str, ...] = ()
    system: str | None = None
    paraphrased: str | None = None
    variants: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Controls:
    """What a thorough evaluation compares with, besides the evaluation sets.

    Attributes:
        retain: retain rows with paraphrased and wrong answers.
        holdout: rows like the forget rows that the model was never trained on.
        text: paragraphs unrelated to the forget questions.
    """

    retain: tuple[EvaluationRow, ...] = ()
    holdout: tuple[EvaluationRow, ...] = ()
    text: tuple[str, ...] = ()
