"""Data sets from files and from memory: the same rows, the same checks, the same errors."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

from pmc_jax.assets import WORLD_DATA
from pmc_jax.data import Controls, DataConfig, Dataset, ForgetPair, ForgetQuestion, load_dataset
from pmc_jax.data.encode import EncodedData
from pmc_jax.errors import UserError

FORGET = [
    {"question": "Who?", "answer": "Zoë Ng of Oslo", "secret": "Oslo", "variants": ["Whom?"],
     "paraphrased_question": "Whose?", "paraphrased_answer": "It is Zoë Ng.",
     "perturbed_answer": ["Ann", "Bob"]},
    {"question": "Where?", "answer": "東京", "system": "Be brief.",
     "paraphrased_question": "In what place?", "paraphrased_answer": "In 東京."},
]  # fmt: skip
RETAIN = [
    {"question": "1+1?", "answer": "2"},
    {"messages": [
        {"role": "system", "content": "Hi."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]},
]  # fmt: skip
FACTS = [{"question": "Capital of Peru?", "answer": "Lima", "perturbed_answer": "Quito"}]
AUTHORS = [{"question": "Who wrote 'Emma'?", "answer": "Jane Austen"}]
HOLDOUT = [{"question": "Whence?", "answer": "Riga"}]
TEXT = ["One paragraph.", "Another one."]
SETS = {
    "forget": FORGET, "retain": RETAIN, "world_facts": FACTS, "real_authors": AUTHORS,
    "holdout": HOLDOUT,
}  # fmt: skip


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    found = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in SETS.items()}
    return {**found, "text": tmp_path / "text.txt"}


class Columns:
    """The part of `datasets.Dataset` that is used: rows, each of which has every column."""

    def __init__(self, rows: list[dict]) -> None:
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.rows = rows

    def __iter__(self):
        return iter({name: row.get(name) for name in self.names} for row in self.rows)


@pytest.mark.parametrize("retain_rows", [None, 3])
def test_files_and_memory_give_the_same(files, retain_rows):
    expected = Dataset.from_files(**files, retain_rows=retain_rows)
    assert Dataset.from_dicts(**SETS, text=TEXT, retain_rows=retain_rows) == expected
    columns = {name: Columns(rows) for name, rows in SETS.items()}
    assert Dataset.from_huggingface(**columns, text=TEXT, retain_rows=retain_rows) == expected
    generators = {name: (row for row in rows) for name, rows in SETS.items()}
    assert Dataset.from_dicts(**generators, text=TEXT, retain_rows=retain_rows) == expected
    paths = {name: str(path) for name, path in files.items()}
    cfg = DataConfig(format="files", path="/", retain_rows=retain_rows, **paths)
    assert load_dataset(cfg) == expected


def test_what_is_in_a_data_set():
    data = Dataset.from_dicts(**SETS, text=TEXT)
    assert data.forget == (ForgetQuestion(0, "Who?"), ForgetQuestion(1, "Where?", "Be brief."))
    assert [(row.question, row.answer, row.system) for row in data.retain] == [
        ("1+1?", "2", None), ("2+2?", "4", "Hi."),
    ]  # fmt: skip
    assert set(data.evaluation) == {
        "forget", "paraphrase", "retain", "world_facts", "real_authors",
    }  # fmt: skip
    first = data.evaluation["forget"][0]
    assert (first.secret, first.perturbed, first.variants) == ("Oslo", ("Ann", "Bob"), ("Whom?",))
    assert data.evaluation["paraphrase"][1].answer == "In 東京."
    assert data.evaluation["world_facts"][0].perturbed == ("Quito",)
    assert data.controls.holdout[0].answer == "Riga"
    assert data.controls.text == tuple(TEXT)
    assert data.controls.retain == data.evaluation["retain"]
    assert data.refusals == ()


def test_a_string_is_a_question():
    data = Dataset.from_dicts(forget=["Who?", {"question": "Where?"}], retain=RETAIN)
    assert data.forget == (ForgetQuestion(0, "Who?"), ForgetQuestion(1, "Where?"))
    assert set(data.evaluation) == {"forget", "retain"}
    assert data.controls == Controls(retain=data.evaluation["retain"])


def test_public_rows_stand_in_for_text():
    data = Dataset.from_dicts(FORGET, RETAIN, FACTS, AUTHORS)
    assert data.controls.text == ("Capital of Peru? Lima", "Who wrote 'Emma'? Jane Austen")


GOOD = {"question": "Who?", "answer": "Zoë"}
BAD_ROWS = [
    ({"answer": "Zoë"}, "field 'question' is missing; the row has 'answer'"),
    ({}, "field 'question' is missing; the row has no fields"),
    ({"question": 3}, "field 'question' must be a string, but is a number"),
    ({"question": None}, "field 'question' must be a string, but is null"),
    ({"question": " ", "answer": "x"}, "field 'question' is empty; expected some text"),
    ({"question": "\u200b\u200f", "answer": "x"}, "field 'question' is empty; expected some text"),
    ({"question": "\ud800", "answer": "x"}, "field 'question' contains half a surrogate pair"),
    ({"question": "W", "answer": [3]}, "field 'answer' must be a string, but is a number"),
    ({"question": "W", "answer": "x", "variants": [1]}, "field 'variants' must be a string, but"),
    ({"question": "Who?", "anwser": "Zoë"}, "field 'answer' is missing, but "),
    ({"messages": [{"role": ["user"]}]}, "field 'messages' has the roles [['user']]; expected one"),
    ({"messages": [{"role": "user"}]}, "field 'messages[0].content' must be a string"),
]


def message(make, *args, **kwargs) -> str:
    """The error message, which must be a single line."""
    with pytest.raises(UserError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[e[:40] for _, e in BAD_ROWS])
def test_a_bad_row_has_the_same_error_wherever_it_is(tmp_path, row, expected):
    rows = [GOOD, row]
    in_memory = message(Dataset.from_dicts, forget=rows, retain=RETAIN)
    assert in_memory.startswith(f"forget[1]: {expected}")
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    retain = write(tmp_path / "r.jsonl", RETAIN)
    in_file = message(Dataset.from_files, path, retain)
    renamed = in_memory.replace("forget[1]", f"{path}, line 2")
    assert in_file == renamed.replace("forget[0]", f"{path}, line 1")


@pytest.mark.parametrize("name", ["retain", "world_facts", "real_authors", "holdout"])
def test_other_rows_need_an_answer(name):
    rows = {"forget": FORGET, "retain": RETAIN, name: [GOOD, {"question": "Who?"}]}
    expected = f"{name}[1]: field 'answer' is missing; the row has 'question'"
    assert message(Dataset.from_dicts, **rows) == expected
    assert message(Dataset.from_huggingface, **rows) == expected


def test_what_is_not_rows(tmp_path, monkeypatch):
    # Users have no runtime type checks, so the function itself has to find these mistakes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def error(**changed):
        return message(Dataset.from_dicts, **({"forget": FORGET, "retain": RETAIN} | changed))

    assert error(forget="f.jsonl").startswith("forget='f.jsonl': found a text; expected a list")
    assert error(retain=tmp_path).startswith(f"retain='{tmp_path}': found a path; expected a list")
    splits = {"train": FORGET, "test": FORGET}
    assert error(forget=splits).startswith("forget: found a mapping with the keys train, test; ")
    assert error(forget=[]) == "forget: no rows; expected at least one"
    assert error(holdout=[]) == "holdout: no rows; expected at least one"
    assert error(forget=[GOOD, 3]) == "forget[1]: found a number; expected a mapping of fields"
    assert error(retain=["Who?"]) == "retain[0]: found a string; expected a mapping of fields"
    assert error(text="Words.") == "text='Words.': found a str; expected a list of texts or None"
    assert error(forget=3) == "forget: found a number; expected a list of rows"
    strings = message(Dataset.from_huggingface, forget=["Who?"], retain=RETAIN)
    assert strings == "forget[0]: found a string; expected a mapping of fields"
    missing = message(Dataset.from_files, tmp_path / "f.jsonl", tmp_path / "r.jsonl")
    assert missing == f"{tmp_path / 'f.jsonl'}: no such file; expected a JSON-lines file"


@pytest.mark.parametrize("make", [Dataset.from_dicts, Dataset.from_huggingface])
def test_rows_in_memory_are_told_what_works_there(make):
    """No key of the command line, which reads files, is of use."""
    found = message(make, forget=[{"Prompt": "Who?"}], retain=RETAIN)
    assert found == (
        "forget[0]: field 'question' is missing; the row has 'Prompt'; rename 'Prompt' to "
        "'question' if it is the question"
    )
    chat = [{"messages": [{"role": "user", "content": "Who?"}], "completion": "Ann"}]
    found = message(make, forget=FORGET, retain=chat)
    assert found.endswith("; rename 'completion' to 'answer' if it is the answer")


def test_forget_pairs(files):
    expected = (
        ForgetPair(0, "Who?", "Zoë Ng of Oslo"), ForgetPair(1, "Where?", "東京", "Be brief.")
    )  # fmt: skip
    assert Dataset.from_dicts(FORGET, RETAIN).forget_pairs() == expected
    assert Dataset.from_files(files["forget"], files["retain"]).forget_pairs() == expected


def test_forget_pairs_name_the_first_row_without_an_answer(tmp_path):
    rows = [{"question": "Who?"}, {"question": "Where?"}]
    expected = "field 'answer' is missing; expected the answer to forget, which this method trains"
    data = Dataset.from_dicts(rows, RETAIN)
    assert message(data.forget_pairs).startswith(f"forget[0]: {expected}")
    path, retain = tmp_path / "f.jsonl", write(tmp_path / "r.jsonl", RETAIN)
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    data = Dataset.from_files(path, retain)
    assert message(data.forget_pairs).startswith(f"{path}, line 2: {expected}")
    path.write_text(json.dumps(rows))
    data = Dataset.from_files(path, retain)
    assert message(data.forget_pairs).startswith(f"{path}, element 1: {expected}")
    bare = Dataset(data.forget, data.retain, data.evaluation)
    assert message(bare.forget_pairs).startswith(f"forget[0]: {expected}")


def test_what_pmc_receives_has_no_forget_answer():
    """There is no field for an answer, and none among the values."""
    assert {field.name for field in dataclasses.fields(ForgetQuestion)} == {
        "id", "question", "system",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(EncodedData)} == {"forget", "retain"}
    noise = [{**row, "answer": "noise", "paraphrased_answer": "noise"} for row in FORGET]
    before, after = (Dataset.from_dicts(rows, RETAIN, FACTS) for rows in (FORGET, noise))
    assert (before.forget, before.retain) == (after.forget, after.retain)
    assert (before.controls, before.refusals) == (after.controls, after.refusals)
    assert before.evaluation["forget"] != after.evaluation["forget"]


def test_the_bundled_world():
    data = Dataset.bundled()
    assert data == load_dataset(DataConfig(path="bundled", retain_rows=None))
    rows = [json.loads(line) for line in (WORLD_DATA / "forget10.json").read_text().splitlines()]
    assert [(pair.question, pair.answer) for pair in data.forget_pairs()] == [
        (row["question"], row["answer"]) for row in rows
    ]
    lines = (WORLD_DATA / "idontknow.jsonl").read_text().splitlines()
    assert list(data.refusals) == lines and len(lines) > 3
    assert len(data.evaluation["retain"]) == len(data.retain)
    assert data.controls.holdout and data.controls.text
    assert all(row.paraphrased and row.perturbed for row in data.controls.retain)


def test_tofu(tmp_path):
    for name, rows in (("forget05", FORGET), ("retain95", RETAIN[:1]), ("holdout05", HOLDOUT)):
        write(tmp_path / f"{name}.json", rows)
    data = Dataset.tofu(tmp_path, "forget05", "retain95")
    cfg = DataConfig(path=str(tmp_path), forget="forget05", retain="retain95")
    assert data == load_dataset(cfg)
    assert data.controls.holdout[0].question == "Whence?"
    assert len(data.evaluation["retain"]) == 400 and data.refusals == ()
    (tmp_path / "idontknow.jsonl").write_text("I don't know.\n\n  No idea.  \n")
    assert Dataset.tofu(tmp_path, "forget05", "retain95").refusals == ("I don't know.", "No idea.")
    (tmp_path / "idontknow.jsonl").write_text("\n")
    error = message(Dataset.tofu, tmp_path, "forget05", "retain95")
    assert error == f"{tmp_path / 'idontknow.jsonl'}: no refusals; expected one a line"
    assert "no such split" in message(Dataset.tofu, tmp_path)


def test_reading_data_needs_no_jax():
    assert "jax" not in imported("from pmc_jax.data import Dataset; Dataset.bundled()")


def imported(code: str) -> set[str]:
    """The top-level modules that a new interpreter has imported after it ran `code`."""
    command = f"{code}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    return set(done.stdout.decode().split())
