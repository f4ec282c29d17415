"""A data set: what to forget, what to retain, and what to evaluate."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmc_jax.data.build import (
    DataRecords,
    evaluation_rows,
    evaluation_sets,
    forget_questions,
    public_text,
    retain_pairs,
)
from pmc_jax.data.checks import (
    Sources,
    check_overlap,
    duplicate_questions,
    odd_secrets,
    where,
)
from pmc_jax.data.files import read_text_lines
from pmc_jax.data.records import FileReader, Record, make_records
from pmc_jax.data.rows import (
    Controls,
    DataConfig,
    EvaluationRow,
    Fields,
    ForgetPair,
    ForgetQuestion,
    QuestionAnswer,
)
from pmc_jax.data.tofu import DataFiles, tofu_files
from pmc_jax.errors import UserError
from pmc_jax.signatures import checked

Rows = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Questions to forget, pairs to keep, and rows to evaluate.

    Make one with `from_files`, `from_dicts`, `from_huggingface`, `tofu` or `bundled`.

    A row has a `question` and, unless it is a forget row, an `answer`. A forget row without
    an answer is enough to unlearn; evaluating what was forgotten needs the answer. Optional
    fields are `system` (the system prompt), `secret` (the phrase of the answer that the model
    must not reveal), `perturbed_answer` (wrong answers), `paraphrased_question`,
    `paraphrased_answer` and `variants` (the question in other words). An answer may be a
    list of right answers, the main one first. A row may also be a chat:
    `{"messages": [{"role": …, "content": …}, …]}`.

    Attributes:
        forget: the forget questions, without their answers.
        retain: the pairs to keep.
        evaluation: rows by the name of their set: "forget", "paraphrase" (the forget rows in
            other words, with the same ids), "retain", "world_facts" and "real_authors". A set
            that the data does not have is absent.
        controls: what a thorough evaluation compares with.
        refusals: the data's own refusals, such as "I don't know."; empty if it has none.
        sources: where forget and retain rows came from, by the name of their set, for errors:
            `f.jsonl, line 4` or `forget[3]`.
        warnings: what is suspicious in the data, one sentence each.
    """

    forget: tuple[ForgetQuestion, ...]
    retain: tuple[QuestionAnswer, ...]
    evaluation: Mapping[str, tuple[EvaluationRow, ...]]
    controls: Controls = dataclasses.field(default_factory=Controls)
    refusals: tuple[str, ...] = ()
    sources: Sources = dataclasses.field(default_factory=dict, compare=False, repr=False)
    warnings: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    @classmethod
    @checked()
    def from_files(
        cls,
        forget: str | Path,
        retain: str | Path,
        world_facts: str | Path | None = None,
        real_authors: str | Path | None = None,
        holdout: str | Path | None = None,
        text: str | Path | None = None,
        retain_rows: int | None = None,
        allow_overlap: bool = False,
        fields: Mapping[str, str] | None = None,
    ) -> "Dataset":
        """Read files: JSON lines, JSON, CSV, TSV, plain text, Parquet, or saved `datasets`.

        Args:
            forget: rows to forget.
            retain: rows to keep.
            world_facts, real_authors: more rows to measure utility on.
            holdout: rows like the forget rows that the model was never trained on, for
                membership inference.
            text: a text file with one paragraph per line, unrelated to the forget questions, for
                side effects. None: the questions and answers of `world_facts` and
                `real_authors`.
            retain_rows: how many retain rows to evaluate, drawn with replacement; None: each
                once.
            allow_overlap: whether a forget question may also be in the retain data.
            fields: what the files call the fields: {"question": "prompt"}.

        Raises:
            UserError: naming file, row and field, if the data is malformed.
        """

        def path(name: str | Path | None) -> Path | None:
            return None if name is None else Path(name).expanduser()

        files = DataFiles(
            forget=Path(forget).expanduser(),
            retain=Path(retain).expanduser(),
            world_facts=path(world_facts),
            real_authors=path(real_authors),
            holdout=path(holdout),
            text=path(text),
        )
        records = read_data_files(files, Fields.named(fields))
        return cls.from_records(records, retain_rows, allow_overlap=allow_overlap)

    @classmethod
    @checked()
    def from_dicts(
        cls,
        forget: Iterable[Mapping[str, Any] | str],
        retain: Rows,
        world_facts: Rows | None = None,
        real_authors: Rows | None = None,
        holdout: Rows | None = None,
        text: Sequence[str] | None = None,
        retain_rows: int | None = None,
        allow_overlap: bool = False,
    ) -> "Dataset":
        """Take rows in memory, with the same fields as the rows of files.

        Args:
            forget: rows to forget; a string is a question without an answer.
            text: paragraphs unrelated to the forget questions.
            retain, world_facts, real_authors, holdout, retain_rows, allow_overlap: as in
                `from_files`.

        Raises:
            UserError: naming row (`forget[3]`) and field, if the data is malformed.

        Example:
            >>> data = Dataset.from_dicts(
            ...     forget=["Where was Aldo Branberg born?"],
            ...     retain=[{"question": "Who wrote 'Hamlet'?", "answer": "Shakespeare."}],
            ... )
            >>> data.forget[0].question
            'Where was Aldo Branberg born?'
        """

        records = make_data_records(
            forget, retain, world_facts, real_authors, holdout, text, allow_questions=True
        )
        return cls.from_records(records, retain_rows, allow_overlap=allow_overlap)

    @classmethod
    @checked()
    def from_huggingface(
        cls,
        forget: Rows,
        retain: Rows,
        world_facts: Rows | None = None,
        real_authors: Rows | None = None,
        holdout: Rows | None = None,
        text: Sequence[str] | None = None,
        retain_rows: int | None = None,
        allow_overlap: bool = False,
    ) -> "Dataset":
        """Take splits of Hugging Face data sets (`datasets.Dataset`).

        The columns are named like the fields of `from_dicts`; rename others with
        `dataset.rename_column`. Any iterable of mappings will do.

        Raises:
            UserError: naming row (`forget[3]`) and column, if the data is malformed.
        """
        records = make_data_records(
            forget, retain, world_facts, real_authors, holdout, text, allow_questions=False
        )
        return cls.from_records(records, retain_rows, allow_overlap=allow_overlap)

    @classmethod
    @checked()
    def tofu(
        cls,
        path: str | Path | None = None,
        forget: str = "forget10",
        retain: str = "retain90",
    ) -> "Dataset":
        """The TOFU benchmark (Maini et al. 2024), or files with its names and layout.

        Args:
            path: the directory of the files; None: download them from the Hugging Face hub.
            forget, retain: names of splits.

        Raises:
            UserError: if there is no such directory or split, the hub cannot be reached, or a
                file is malformed.
        """
        directory = None if path is None else str(path)
        config = DataConfig(path=directory, forget=forget, retain=retain)
        files = tofu_files(config, controls=True)
        return cls.from_records(read_data_files(files), config.retain_rows)

    @classmethod
    def bundled(cls) -> "Dataset":
        """The small world of fictitious authors that the bundled model was trained on."""
        return cls.from_records(read_data_files(tofu_files(DataConfig(path="bundled"))))

    @classmethod
    def from_records(
        cls,
        records: DataRecords,
        retain_rows: int | None = None,
        *,
        allow_overlap: bool = False,
    ) -> "Dataset":
        """Check records and form the evaluation sets and controls that they allow.

        If the records have no retain rows with paraphrased and wrong answers, the controls
        have the retain rows that are evaluated.

        Raises:
            UserError: naming row and field, if a record is malformed; or the rows, if forget
                questions are also in the retain data.
        """
        forget, retain = forget_questions(records.forget), retain_pairs(records.retain)
        sets = evaluation_sets(records, retain_rows)
        sources = {
            "forget": tuple(record.where for record in records.forget),
            "retain": tuple(record.where for record in records.retain),
        }
        warnings = (
            *check_overlap(sets, retain, sources, allowed=allow_overlap),
            *duplicate_questions(forget, sources),
            *odd_secrets(sets["forget"], sources),
        )
        text = records.text
        if text is None:
            public = (sets.get(name, ()) for name in ("world_facts", "real_authors"))
            text = public_text(row for rows in public for row in rows)
        perturbed = evaluation_rows(records.retain_perturbed)
        controls = Controls(
            retain=perturbed or tuple(dict.fromkeys(sets["retain"])),
            holdout=evaluation_rows(records.holdout),
            text=tuple(text),
        )
        return cls(
            forget=forget,
            retain=retain,
            evaluation=sets,
            controls=controls,
            refusals=tuple(records.refusals),
            sources=sources,
            warnings=warnings,
        )

    def where(self, name: str, row: int) -> str:
        """Where a row of the set `name` came from, for errors."""
        return where(self.sources, name, row)

    def forget_pairs(self) -> tuple[ForgetPair, ...]:
        """The forget questions with their answers, for methods that train on them; never for PMC.

        Raises:
            UserError: naming the first row without an answer.
        """
        pairs = []
        for row in self.evaluation["forget"]:
            if row.answer is None:
                raise UserError(
                    f"{self.where('forget', row.id)}: field 'answer' is missing; expected the "
                    "answer to forget, which this method trains on"
                )
            pairs.append(ForgetPair(row.id, row.question, row.answer, row.system))
        return tuple(pairs)


def expected_dataset(value: Any) -> str:
    """What is expected in place of a data set."""
    return "a Dataset, which pmc.Dataset.from_files returns"


def read_data_files(files: DataFiles, fields: Fields = Fields()) -> DataRecords:  # noqa: B008
    """Read the files of a data set; their rows are not checked yet.

    Raises:
        UserError: if a file cannot be read, or no file has a column that `fields` names.
    """
    reader = FileReader(fields.renamed())

    def records(path: Path | None) -> list[Record] | None:
        return None if path is None else reader.records(path)

    refusals: list[str] = []
    if files.refusals is not None:
        refusals = read_text_lines(files.refusals)
        if not refusals:
            raise UserError(f"{files.refusals}: no refusals; expected one a line")
    found = DataRecords(
        forget=reader.records(files.forget),
        retain=reader.records(files.retain),
        perturbed=records(files.perturbed),
        world_facts=records(files.world_facts),
        real_authors=records(files.real_authors),
        retain_perturbed=records(files.retain_perturbed),
        holdout=records(files.holdout),
        text=None if files.text is None else read_text_lines(files.text),
        refusals=refusals,
    )
    reader.check()
    return found


def make_data_records(
    forget: Iterable[Mapping[str, Any] | str],
    retain: Rows,
    world_facts: Rows | None,
    real_authors: Rows | None,
    holdout: Rows | None,
    text: Sequence[str] | None,
    *,
    allow_questions: bool,
) -> DataRecords:
    """The records of rows in memory; their fields are not checked yet.

    Args:
        allow_questions: whether a forget row may be a string, the question.

    Raises:
        UserError: if something is not a list of rows.
    """

    def records(name: str, rows: Rows | None) -> list[Record] | None:
        return None if rows is None else make_records(name, rows)

    return DataRecords(
        forget=make_records("forget", forget, allow_questions=allow_questions),
        retain=make_records("retain", retain),
        world_facts=records("world_facts", world_facts),
        real_authors=records("real_authors", real_authors),
        holdout=records("holdout", holdout),
        text=text,
    )
