"""From a data configuration to questions, pairs and evaluation rows."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pmc_jax.data.jsonl import Record, read_records, read_text
from pmc_jax.data.rows import (
    Controls,
    DataConfig,
    Dataset,
    EvaluationRow,
    ForgetQuestion,
    QuestionAnswer,
)
from pmc_jax.data.tofu import DataFiles, tofu_files
from pmc_jax.errors import UserError

RETAIN_SEED = 12345


def load_dataset(cfg: DataConfig) -> Dataset:
    """Read the data set that `cfg` describes.

    Raises:
        UserError: with file, row and field, for whatever is wrong with the data.
    """
    return read_dataset(data_files(cfg), cfg.retain_rows)


def load_controls(cfg: DataConfig, dataset: Dataset, *, download: bool = True) -> Controls:
    """Read what `dataset` is held against in a thorough evaluation, as far as it is there.

    Where no file has retain rows with paraphrased and wrong answers, those evaluated are taken.
    Without `download` a hub is asked for no file beyond those of `dataset`.

    Raises:
        UserError: with file, row and field, for whatever is wrong with the data.
    """
    files = data_files(cfg, controls=download)

    def read(path: Path | None) -> tuple[EvaluationRow, ...]:
        return () if path is None else evaluation_rows(read_records(path))

    if files.text is None:
        sets = (dataset.evaluation.get(name, ()) for name in ("world_facts", "real_authors"))
        text = public_text(row for rows in sets for row in rows)
    else:
        text = [line.strip() for line in read_text(files.text).splitlines() if line.strip()]
    return Controls(
        retain=read(files.retain_perturbed) or tuple(dict.fromkeys(dataset.evaluation["retain"])),
        holdout=read(files.holdout),
        text=tuple(text),
    )


def public_text(rows: Iterable[EvaluationRow]) -> list[str]:
    """Questions with their answers as text, for data that brings no text of its own."""
    return [f"{row.question} {row.answer}" for row in rows if row.answer]


def data_files(cfg: DataConfig, *, controls: bool = False) -> DataFiles:
    """Where the data set's files are; with `controls`, those of `Controls` are fetched too."""
    if cfg.format == "tofu":
        return tofu_files(cfg, controls=controls)
    if cfg.format == "jsonl":
        return _jsonl_files(cfg)
    raise UserError(f"data.format={cfg.format}: expected tofu or jsonl")


def _jsonl_files(cfg: DataConfig) -> DataFiles:
    base = Path(cfg.path or ".").expanduser()

    def resolve(option: str, name: str) -> Path:
        path = base / Path(name).expanduser()
        if not path.exists():
            raise UserError(f"data.{option}={name}: no such file in {base}")
        return path

    def optional(option: str, name: str | None) -> Path | None:
        return resolve(option, name) if name else None

    return DataFiles(
        forget=resolve("forget", cfg.forget),
        retain=resolve("retain", cfg.retain),
        world_facts=optional("world_facts", cfg.world_facts),
        real_authors=optional("real_authors", cfg.real_authors),
        holdout=optional("holdout", cfg.holdout),
        text=optional("text", cfg.text),
    )


def read_dataset(files: DataFiles, retain_rows: int | None) -> Dataset:
    """Read all files and form the evaluation sets that they allow."""
    forget, retain = read_records(files.forget), read_records(files.retain)
    perturbed = forget if files.perturbed is None else read_records(files.perturbed)
    _check_aligned(forget, perturbed)
    pairs = tuple(
        QuestionAnswer(i, r.text("question"), r.text("answer"), r.optional_text("system"))
        for i, r in enumerate(retain)
    )
    evaluation = _forget_sets(forget, perturbed)
    evaluation["retain"] = draw_rows(evaluation_rows(retain), retain_rows)
    for name, path in (("world_facts", files.world_facts), ("real_authors", files.real_authors)):
        if path is not None:
            evaluation[name] = evaluation_rows(read_records(path))
    questions = tuple(
        ForgetQuestion(i, r.text("question"), r.optional_text("system"))
        for i, r in enumerate(forget)
    )
    return Dataset(questions, pairs, evaluation)


def evaluation_rows(records: list[Record]) -> tuple[EvaluationRow, ...]:
    """Rows with question and answer, as they stand in a file."""
    return tuple(
        EvaluationRow(
            id=i,
            question=r.text("question"),
            answer=r.text("answer"),
            secret=r.optional_text("secret"),
            perturbed=r.texts("perturbed_answer"),
            system=r.optional_text("system"),
            paraphrased=r.optional_text("paraphrased_answer"),
            variants=r.texts("variants"),
        )
        for i, r in enumerate(records)
    )


def draw_rows(rows: tuple[EvaluationRow, ...], count: int | None) -> tuple[EvaluationRow, ...]:
    """`count` rows drawn with replacement, always the same ones (repeats stay); None: all."""
    if count is None:
        return rows
    if count < 1:
        raise UserError(f"data.retain_rows={count}: expected a positive number or null")
    drawn = np.random.default_rng(RETAIN_SEED).integers(0, len(rows), count)
    return tuple(rows[i] for i in drawn)


def _check_aligned(forget: list[Record], perturbed: list[Record]) -> None:
    if len(forget) != len(perturbed):
        raise UserError(
            f"{perturbed[-1].where}: expected as many rows as the forget file has "
            f"({len(forget)}), found {len(perturbed)}"
        )
    for ours, theirs in zip(forget, perturbed, strict=True):
        if ours.text("question") != theirs.text("question"):
            raise theirs.error("question", f"differs from that of {ours.where}")


def _forget_sets(
    forget: list[Record], perturbed: list[Record]
) -> dict[str, tuple[EvaluationRow, ...]]:
    """Evaluation sets "forget" and, where the rows have the fields, "paraphrase".

    Either all rows have a field or none, so that a misspelt one does not pass as absent.
    """
    _all_or_none(forget, "answer")
    secrets = [
        a.optional_text("secret") or b.optional_text("secret")
        for a, b in zip(forget, perturbed, strict=True)
    ]
    sets = {
        "forget": tuple(
            EvaluationRow(
                id=i,
                question=ours.text("question"),
                answer=ours.optional_text("answer"),
                secret=secret,
                perturbed=theirs.texts("perturbed_answer"),
                system=ours.optional_text("system"),
                paraphrased=theirs.optional_text("paraphrased_answer"),
                variants=ours.texts("variants") or theirs.texts("variants"),
            )
            for i, (ours, theirs, secret) in enumerate(zip(forget, perturbed, secrets, strict=True))
        )
    }
    if _all_or_none(perturbed, "paraphrased_question"):
        sets["paraphrase"] = tuple(
            EvaluationRow(
                id=row.id,
                question=theirs.text("paraphrased_question"),
                answer=theirs.text("paraphrased_answer"),
                secret=row.secret,
                perturbed=row.perturbed,
                system=row.system,
            )
            for row, theirs in zip(sets["forget"], perturbed, strict=True)
        )
    return sets


def _all_or_none(records: list[Record], field: str) -> bool:
    having = [r for r in records if r.fields.get(field) is not None]
    if having and len(having) < len(records):
        lacking = next(r for r in records if r.fields.get(field) is None)
        raise lacking.error(field, f"is missing, but {having[0].where} has it")
    return bool(having)
