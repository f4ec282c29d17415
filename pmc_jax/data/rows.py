"""What a data set is made of.

A forget row has three types on purpose. PMC sees `ForgetQuestion`, which has no
answer, so that a ground-truth answer cannot reach the optimiser by mistake; evaluation
sees `EvaluationRow`; and only a method that is defined on forget answers has
`ForgetPair` rows loaded for it.
"""

import dataclasses
from collections.abc import Mapping

from pmc_jax.settings import one_of, path_to


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the questions and answers come from.

    Attributes:
        format: "tofu": files named and laid out like TOFU's; "jsonl": your own files.
        path: directory of the files; "bundled": the small world in the package; None: a
            download from `hub`, for format=tofu.
        hub: Hugging Face data set in TOFU's format.
        forget: what to forget: a split of TOFU, or a JSONL file.
        retain: what to keep: a split of TOFU, or a JSONL file.
        world_facts: file with questions about the world, for utility.
        real_authors: file with questions about real people, for utility.
        retain_rows: retain examples to evaluate, drawn with replacement; None: each once.
        holdout: file like `forget` that the model has never seen, for membership inference.
        text: file with unrelated text, one paragraph a line, for side effects.

    For format=tofu, the last four files are found by their names in TOFU if they are None:
    holdout10 belongs to forget10, and text.txt has the text. Without a text, side effects are
    measured on the questions and answers of `world_facts` and `real_authors`.
    """

    format: str = one_of("tofu", "tofu", "jsonl")
    path: str | None = path_to(None)
    hub: str = "locuslab/TOFU"
    forget: str = path_to("forget10")
    retain: str = path_to("retain90")
    world_facts: str | None = path_to(None)
    real_authors: str | None = path_to(None)
    retain_rows: int | None = 400
    holdout: str | None = path_to(None)
    text: str | None = path_to(None)


@dataclasses.dataclass(frozen=True)
class ForgetQuestion:
    """A question whose answer must be forgotten; `id` is its row number in the forget file."""

    id: int
    question: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class ForgetPair:
    """A forget question with its true answer, for the methods that train on it; never for PMC."""

    id: int
    question: str
    answer: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class QuestionAnswer:
    """A pair the model must keep; `id` is its row number in the retain file."""

    id: int
    question: str
    answer: str
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """A question with its ground truth, for evaluation only.

    Attributes:
        id: row number in the file the question comes from.
        answer: the ground truth; None in a forget file that has questions only.
        secret: the phrase within the answer that must not come out, where known.
        perturbed: wrong answers, of the form of `paraphrased` where there is one.
        paraphrased: the truth in other words.
        variants: the question in other wordings, besides that of the paraphrase set.
    """

    id: int
    question: str
    answer: str | None
    secret: str | None = None
    perturbed: tuple[str, ...] = ()
    system: str | None = None
    paraphrased: str | None = None
    variants: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows to forget, rows to keep, and evaluation sets by name.

    `evaluation` may hold "forget", "paraphrase" (the forget rows asked and answered in
    other words, same ids), "retain", "world_facts" and "real_authors"; a set that the
    data does not have is absent.
    """

    forget: tuple[ForgetQuestion, ...]
    retain: tuple[QuestionAnswer, ...]
    evaluation: Mapping[str, tuple[EvaluationRow, ...]]


@dataclasses.dataclass(frozen=True)
class Controls:
    """What a thorough evaluation holds the model against, besides the sets it is asked.

    Attributes:
        retain: rows to keep with paraphrased and wrong answers.
        holdout: rows like those to forget that the model was never taught.
        text: paragraphs that have nothing to do with the forget questions.
    """

    retain: tuple[EvaluationRow, ...] = ()
    holdout: tuple[EvaluationRow, ...] = ()
    text: tuple[str, ...] = ()
