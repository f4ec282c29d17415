"""The types of a data set's rows.

A forget row has three types on purpose. PMC gets a `ForgetQuestion`, which has no answer, so
a ground-truth answer cannot reach the optimiser by mistake. Evaluation gets an
`EvaluationRow`. Only a method that is defined on forget answers gets a `ForgetPair`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is.

    Attributes:
        format: "tofu" (files laid out and named like TOFU's) or "jsonl" (one's own files).
        path: tofu: a directory, or "bundled" for the small world in the package; None
            downloads from `hub`. jsonl: what relative file names are relative to.
        hub: id of a Hugging Face data set.
        forget, retain: tofu: names of splits. jsonl: files.
        world_facts, real_authors: more questions to measure utility on. None: for tofu
            the files of these names if they exist, for jsonl none.
        retain_rows: how many retain rows to evaluate, drawn with replacement; None: each once.
        holdout: rows like those to forget that the model was never taught, for membership
            inference. None: for tofu the file named after `forget` (forget10: holdout10), if it
            exists, for jsonl none.
        text: plain text that has nothing to do with the forget questions, a paragraph a line,
            for side effects. None: for tofu `text.txt`, if it exists; else the questions and
            answers of world_facts and real_authors.
    """

    format: str = "tofu"
    path: str | None = None
    hub: str = "locuslab/TOFU"
    forget: str = "forget10"
    retain: str = "retain90"
    world_facts: str | None = None
    real_authors: str | None = None
    retain_rows: int | None = 400
    holdout: str | None = None
    text: str | None = None


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
        secret: the phrase of the answer that must not come out, if known.
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
