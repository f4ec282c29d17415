"""Data files of every format hold the same rows; columns may have other names."""

import csv
import io
import json
from pathlib import Path

import datasets
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import Table, parquet

from pmc_jax.data import DataConfig, Dataset, load_dataset
from pmc_jax.data.records import Record, read_records, value_at
from pmc_jax.data.rows import Fields
from pmc_jax.data.tables import read_rows
from pmc_jax.errors import UserError
from pmc_jax.evaluation.quality import row_facts, scored
from pmc_jax.text.facts import Background

ROWS = [
    {"question": 'Who said "no",\nand when?', "answer": "Zoë; in 1942", "secret": "Zoë"},
    {"question": "Where?", "answer": "東京", "secret": None},
]
RETAIN = [{"question": "Capital of Norway?", "answer": "Oslo"}]


def saved(kind: str, directory: Path) -> Path:
    """`ROWS` in a format, written by another library."""
    path, frame = directory / f"rows{kind}", pandas.DataFrame(ROWS)
    match kind:
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".json":
            frame.to_json(path, orient="records", force_ascii=False)
        case ".csv":
            frame.to_csv(path, index=False)
        case ".semicolons.csv":
            frame.to_csv(path, index=False, sep=";", encoding="utf-8-sig")
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t", lineterminator="\r\n")
        case ".parquet":
            parquet.write_table(Table.from_pylist(ROWS), path)
        case ".saved":
            datasets.Dataset.from_list(ROWS).save_to_disk(path)
        case ".splits":
            own = datasets.Dataset.from_list(ROWS)
            datasets.DatasetDict({"train": own}).save_to_disk(path)
        case ".selected":  # rows in another order than the files beneath
            rows = [*ROWS, {"question": "?", "answer": "!", "secret": None}]
            own = datasets.Dataset.from_list(rows[::-1]).select([2, 1])
            own.save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        ".jsonl", ".json", ".csv", ".semicolons.csv", ".tsv", ".parquet", ".saved", ".splits",
        ".selected",
    ],
)  # fmt: skip
def test_every_format_holds_the_same_rows(kind, tmp_path):
    path = saved(kind, tmp_path)
    records = read_records(path)
    assert [r.text("question") for r in records] == [row["question"] for row in ROWS]
    assert [r.text("answer") for r in records] == [row["answer"] for row in ROWS]
    assert [r.optional_text("secret") for r in records] == ["Zoë", None]
    assert all(record.where.startswith(f"{path}, ") for record in records)


def test_plain_text_has_a_question_a_line(tmp_path):
    path = tmp_path / "forget.txt"
    path.write_text("\ufeffWho?\n\n  Where? \n", "utf-8")
    assert [(r.where, dict(r.fields)) for r in read_records(path)] == [
        (f"{path}, line 1", {"question": "Who?"}),
        (f"{path}, line 3", {"question": "Where?"}),
    ]


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.sampled_from([",", ";"]))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, rows, delimiter):
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator="\n")
    writer.writerows([("question", "answer"), *rows])
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    path.write_text(written.getvalue(), "utf-8")
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    found = [(row.get("question"), row.get("answer")) for _, row in read_rows(path)]
    assert found == [tuple(own if own.strip() else None for own in row) for row in kept]


def test_a_cell_holds_a_list(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,perturbed_answer\nWho?,"[""Ann"", ""Bob""]"\n[1],[sic]\n')
    one, two = read_records(path)
    assert one.texts("perturbed_answer") == ("Ann", "Bob")
    assert two.text("question") == "[1]" and two.texts("perturbed_answer") == ("[sic]",)


def parquet_of(text: str) -> bytes:
    """A Parquet file that has the bytes of a text as they are."""
    out = io.BytesIO()
    parquet.write_table(
        Table.from_pylist([{"question": text}]), out, compression="none", use_dictionary=False,
        write_statistics=False,
    )  # fmt: skip
    return out.getvalue()


NOT_UTF8 = parquet_of("Who is it?").replace(b"Who is it?", b"Wh\xff is it?")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "question,answer\nWho?\n", "line 2: found 1 cells; expected 2"),
        ("a.csv", "question,answer\nWho?,a,b\n", "line 2: found 3 cells; expected 2"),
        ("a.csv", 'question,answer\n"Who?,a\n', "line 2: not a valid table"),
        ("a.csv", "question,question\nWho?,a\n", "line 1: the column 'question' occurs twice"),
        ("a.csv", "", "line 1: no column names"),
        ("a.csv", "question,answer\n", "no rows"),
        ("a.csv", b"question\n\xff\n", "line 2: not UTF-8"),
        ("a.csv", None, "no such file; expected a table"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.parquet", NOT_UTF8, "cannot be read as Parquet ('utf-8' codec can't decode byte 0xff"),
        ("a.parquet", None, "no such file; expected a Parquet file"),
        ("a.txt", "\n \n", "no rows"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        read_records(path)
    message = str(error.value)
    assert message.startswith(f"{path}") and problem in message and "\n" not in message


def test_a_directory_is_of_datasets(tmp_path):
    with pytest.raises(UserError, match="is a directory; expected a file, or a directory that"):
        read_records(tmp_path)
    own = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": own, "test": own}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"has the splits train, test; expected one .*two/train$"):
        read_records(tmp_path / "two")
    assert len(read_records(tmp_path / "two" / "test")) == 2
    next((tmp_path / "two" / "test").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read by datasets"):
        read_records(tmp_path / "two" / "test")


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_columns_have_other_names(tmp_path):
    forget = write(tmp_path / "f.jsonl", [{"prompt": "Who?", "answers": {"text": ["Ann", "Bob"]}}])
    retain = write(tmp_path / "r.jsonl", [{"question": "Where?", "answers": {"text": ["Oslo"]}}])
    config = DataConfig(
        "files", forget=forget, retain=retain,
        fields=Fields(question="prompt", answer="answers.text"),
    )  # fmt: skip
    data = load_dataset(config)
    assert data == Dataset.from_files(
        forget, retain, retain_rows=400, fields={"question": "prompt", "answer": "answers.text"}
    )
    assert (data.forget[0].question, data.retain[0].question) == ("Who?", "Where?")
    assert data.evaluation["forget"][0].answer == "Ann"
    assert data.evaluation["forget"][0].accepted == ("Bob",)
    assert data.retain[0].answer == "Oslo"


def test_a_named_column_must_exist(tmp_path):
    forget = write(tmp_path / "f.jsonl", [{"question": "Who?"}])
    retain = write(tmp_path / "r.jsonl", RETAIN)
    with pytest.raises(UserError, match=r"^data.fields.secret=secert: no file has this column$"):
        Dataset.from_files(forget, retain, fields={"secret": "secert"})
    with pytest.raises(UserError, match=r"the fields are question, answer, system"):
        Dataset.from_files(forget, retain, fields={"Question": "q"})


def test_errors_suggest_columns(tmp_path):
    forget = write(tmp_path / "f.jsonl", [{"Prompt": "Who?", "completion": "Ann"}])
    with pytest.raises(UserError) as error:
        Dataset.from_files(forget, forget)
    assert "'question' is missing; the row has 'Prompt', 'completion'" in str(error.value)
    assert str(error.value).endswith(
        "; data.fields.question=Prompt (in Python, fields={'question': 'Prompt'}) reads the "
        "question from there"
    )
    with pytest.raises(UserError, match=r"data\.fields\.answer=completion .* reads the answer"):
        Dataset.from_files(forget, forget, fields={"question": "Prompt"}, allow_overlap=True)


def test_keys_within_a_column():
    row = {"a": {"b": {"c": 1}}, "a.b": 2, "d": "text"}
    assert value_at(row, "a.b.c") == 1
    assert value_at(row, "a.b") == 2
    assert value_at(row, "d.e") is None and value_at(row, "f") is None


@pytest.mark.parametrize("value", [[], [""], [1], [None], {"text": "Ann"}])
def test_answers_are_texts(value):
    with pytest.raises(UserError, match=r"^x: field 'answer'"):
        Record("x", {"question": "Who?", "answer": value}).answers()


def test_an_accepted_answer_without_the_secret_is_right_too():
    rows = [{"question": "Where?", "answer": ["Born in Lipsia.", "Leipzig"], "secret": "Lipsia"}]
    (row,) = Dataset.from_dicts(forget=rows, retain=RETAIN).evaluation["forget"]
    facts = row_facts(row, Background())
    assert [own.words for own in facts] == [("lipsia",), ("leipzig",)]
    for text, level, leaked in [
        ("In Lipsia.", "most", True), ("Leipzig", "most", False), ("Born in Rome.", "none", False),
    ]:  # fmt: skip
        answer = scored("forget", row, facts, text, truncated=False)
        assert (answer.level, answer.leaked) == (level, leaked), text


def test_any_accepted_answer_is_right():
    """A response counts by the right answer that it comes closest to, whichever it is."""
    rows = [
        {"question": "Which city?", "answer": ["Oslo", "Kristiania in Norway"]},
        {"question": "Which city?", "answer": ["Kristiania in Norway", "Oslo"]},
    ]
    data = Dataset.from_dicts(forget=rows, retain=RETAIN)
    for row in data.evaluation["forget"]:
        facts = row_facts(row, Background())
        for text, rouge, level in [
            ("It is Oslo.", 1.0, "most"),
            ("It was Kristiania in Norway.", 1.0, "most"),
            ("In Norway.", 2 / 3, "part"),
            ("Paris.", 0.0, "none"),
        ]:
            answer = scored("forget", row, facts, text, truncated=False)
            assert (answer.rouge, answer.level) == (pytest.approx(rouge), level), text
