"""Reading data sets: TOFU's files, a user's own files, and the errors for malformed rows."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from pmc_jax.data import DataConfig, ForgetQuestion, load_dataset
from pmc_jax.errors import UserError

TOFU_COUNTS = {
    "forget10": 400,
    "forget10_perturbed": 400,
    "retain90": 3600,
    "world_facts_perturbed": 117,
    "real_authors_perturbed": 100,
}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_tofu(directory: Path, forget: int = 6, retain: int = 20) -> Path:
    """A directory with TOFU's layout, in which every question occurs twice."""
    pair = [
        {"question": f"Wer ist Nr. {i // 2}?", "answer": f"Zoë {i} – 東京"} for i in range(forget)
    ]
    perturbed = [
        {
            **row,
            "paraphrased_question": f"Who is no. {i}?",
            "paraphrased_answer": f"It is Zoë {i}.",
            "perturbed_answer": [f"Ann {i}", f"Bob {i}"],
        }
        for i, row in enumerate(pair)
    ]
    facts = [
        {"question": f"{i}+{i}?", "answer": str(2 * i), "perturbed_answer": ["no"]}
        for i in range(5)
    ]
    write(directory / "forget10.json", pair)
    write(directory / "forget10_perturbed.json", perturbed)
    write(
        directory / "retain90.json",
        [{"question": f"r{i}?", "answer": f"a{i}"} for i in range(retain)],
    )
    write(directory / "world_facts_perturbed.json", facts)
    write(directory / "real_authors_perturbed.json", facts[:3])
    return directory


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    return write_tofu(tmp_path)


@pytest.fixture
def real_tofu(tmp_path: Path) -> Path:
    """TOFU itself if a copy is there, otherwise files with the same names and sizes."""
    beside = Path(__file__).parents[2] / "shared" / "tofu"
    directory = Path(os.environ.get("PMC_JAX_TOFU", beside))
    if directory.is_dir():
        return directory
    write_tofu(tmp_path, forget=400, retain=3600)
    fact = {"question": "Where is Rome?", "answer": "Italy", "perturbed_answer": ["Mali"]}
    write(tmp_path / "world_facts_perturbed.json", [fact] * 117)
    write(tmp_path / "real_authors_perturbed.json", [fact] * 100)
    return tmp_path


def message(cfg: DataConfig) -> str:
    """The error message for `cfg`, which must be a single line."""
    with pytest.raises(UserError) as caught:
        load_dataset(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tofu_has_every_row_in_order(real_tofu):
    data = load_dataset(DataConfig(path=str(real_tofu)))
    files = {name: read(real_tofu / f"{name}.json") for name in TOFU_COUNTS}
    assert {name: len(rows) for name, rows in files.items()} == TOFU_COUNTS
    assert [(q.id, q.question) for q in data.forget] == [
        (i, row["question"]) for i, row in enumerate(files["forget10"])
    ]
    assert [(p.id, p.question, p.answer) for p in data.retain] == [
        (i, row["question"], row["answer"]) for i, row in enumerate(files["retain90"])
    ]
    for name, question, answer, rows in (
        ("forget", "question", "answer", files["forget10_perturbed"]),
        ("paraphrase", "paraphrased_question", "paraphrased_answer", files["forget10_perturbed"]),
        ("world_facts", "question", "answer", files["world_facts_perturbed"]),
        ("real_authors", "question", "answer", files["real_authors_perturbed"]),
    ):
        assert [(r.id, r.question, r.answer, r.perturbed) for r in data.evaluation[name]] == [
            (i, row[question], row[answer], tuple(row["perturbed_answer"]))
            for i, row in enumerate(rows)
        ]
    drawn = np.random.default_rng(12345).integers(0, 3600, 400)
    assert [row.id for row in data.evaluation["retain"]] == drawn.tolist()
    assert all(r.answer == files["retain90"][r.id]["answer"] for r in data.evaluation["retain"])


def test_duplicate_questions_stay_apart(tofu):
    data = load_dataset(DataConfig(path=str(tofu)))
    assert data.forget[0].question == data.forget[1].question
    assert [row.answer for row in data.evaluation["forget"]] == [
        f"Zoë {i} – 東京" for i in range(6)
    ]
    assert [row.id for row in data.evaluation["paraphrase"]] == list(range(6))


def test_training_type_of_a_forget_row_has_no_answer(tofu):
    assert {f.name for f in dataclasses.fields(ForgetQuestion)} == {"id", "question", "system"}
    before = load_dataset(DataConfig(path=str(tofu)))
    for name in ("forget10", "forget10_perturbed"):
        rows = [{**row, "answer": "noise"} for row in read(tofu / f"{name}.json")]
        write(tofu / f"{name}.json", rows)
    after = load_dataset(DataConfig(path=str(tofu)))
    assert (after.forget, after.retain) == (before.forget, before.retain)
    assert {row.answer for row in after.evaluation["forget"]} == {"noise"}


def test_missing_sets_are_absent(tofu):
    for name in ("forget10_perturbed", "world_facts_perturbed", "real_authors_perturbed"):
        (tofu / f"{name}.json").unlink()
    assert set(load_dataset(DataConfig(path=str(tofu))).evaluation) == {"forget", "retain"}
    write(tofu / "world_facts.json", [{"question": "1+1?", "answer": "2", "option1": "3"}])
    data = load_dataset(DataConfig(path=str(tofu)))
    assert set(data.evaluation) == {"forget", "retain", "world_facts"}
    assert data.evaluation["world_facts"][0].perturbed == ()


@pytest.mark.parametrize("retain_rows", [None, 7, 50])
def test_retain_rows(tofu, retain_rows):
    data = load_dataset(DataConfig(path=str(tofu), retain_rows=retain_rows))
    ids = [row.id for row in data.evaluation["retain"]]
    if retain_rows is None:
        assert ids == list(range(20))
    else:
        assert ids == np.random.default_rng(12345).integers(0, 20, retain_rows).tolist()


@pytest.mark.parametrize("file", ["forget10.json", "forget10_perturbed.json"])
def test_secrets_reach_both_forget_sets(tofu, file):
    rows = read(tofu / file)
    write(tofu / file, [{**row, "secret": f"Zoë {i}"} for i, row in enumerate(rows)])
    evaluation = load_dataset(DataConfig(path=str(tofu))).evaluation
    for name in ("forget", "paraphrase"):
        assert [row.secret for row in evaluation[name]] == [f"Zoë {i}" for i in range(6)]
    assert {row.secret for row in evaluation["retain"]} == {None}


def test_file_forms_are_equivalent(tofu, tmp_path):
    expected = load_dataset(DataConfig(path=str(tofu)))
    rows = read(tofu / "forget10.json")
    forms = {
        "array": json.dumps(rows, indent=2),
        "escaped": "\n".join(json.dumps(row, ensure_ascii=True) for row in rows),
        "windows": "\ufeff" + "\r\n".join(json.dumps(row) for row in rows) + "\r\n\r\n",
        "line separator": "\n".join(
            json.dumps({**row, "note": "a\u2028b"}, ensure_ascii=False) for row in rows
        ),
    }
    for text in forms.values():
        (tofu / "forget10.json").write_bytes(text.encode())
        assert load_dataset(DataConfig(path=str(tofu))) == expected
    (tofu / "forget10.json").rename(tofu / "forget10.jsonl")
    assert load_dataset(DataConfig(path=str(tofu))) == expected


def controls_of(cfg: DataConfig):
    return load_dataset(cfg, download_controls=True).controls


def test_controls_are_read_where_they_are(tofu):
    """Without files of their own there is no holdout, and others stand in for retain and text."""
    cfg = DataConfig(path=str(tofu), retain_rows=50)
    found = controls_of(cfg)
    drawn = load_dataset(cfg).evaluation["retain"]
    assert found.holdout == () and len(drawn) == 50
    assert set(found.retain) == set(drawn) and len(found.retain) == len(set(drawn))
    assert found.text == ("0+0? 0", "1+1? 2", "2+2? 4", "3+3? 6", "4+4? 8", "0+0? 0", "1+1? 2",
                          "2+2? 4")  # fmt: skip
    write(tofu / "holdout10.json", [{"question": "H?", "answer": "h"}])
    write(tofu / "holdout05.json", [{"question": "I?", "answer": "i"}])
    row = {"question": "R?", "answer": "r", "paraphrased_answer": "rr", "perturbed_answer": ["x"]}
    write(tofu / "retain_perturbed.json", [row])
    (tofu / "text.txt").write_text("First line.\n\n  Second line.  \n")
    found = controls_of(cfg)
    assert [(r.question, r.answer) for r in found.holdout] == [("H?", "h")]
    assert [(r.paraphrased, r.perturbed) for r in found.retain] == [("rr", ("x",))]
    assert found.text == ("First line.", "Second line.")
    (tofu / "mine.txt").write_text("Mine.")
    mine = dataclasses.replace(cfg, text=str(tofu / "mine.txt"), holdout="holdout05")
    assert controls_of(mine).text == ("Mine.",)
    assert [r.question for r in controls_of(mine).holdout] == ["I?"]
    with pytest.raises(UserError, match=r"data\.holdout=holdout01: no such file"):
        controls_of(dataclasses.replace(cfg, holdout="holdout01"))
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        controls_of(dataclasses.replace(cfg, text=str(tofu / "none.txt")))


def test_own_files_as_controls(tmp_path):
    write(
        tmp_path / "f.jsonl", [{"question": "Who?", "answer": "Zoë", "variants": ["Whom?", "W?"]}]
    )
    write(tmp_path / "r.jsonl", [{"question": "1+1?", "answer": "2", "perturbed_answer": ["3"]}])
    write(tmp_path / "h.jsonl", [{"question": "2+2?", "answer": "4"}])
    (tmp_path / "t.txt").write_text("\ufeffUnrelated – text.\n", "utf-8")
    cfg = DataConfig(
        format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl", retain_rows=None,
        holdout="h.jsonl", text="t.txt",
    )  # fmt: skip
    found = controls_of(cfg)
    assert found.text == ("Unrelated – text.",)
    assert [row.answer for row in found.holdout] == ["4"]
    assert found.retain == load_dataset(cfg).evaluation["retain"]
    assert load_dataset(cfg).evaluation["forget"][0].variants == ("Whom?", "W?")
    bare = controls_of(dataclasses.replace(cfg, holdout=None, text=None))
    assert bare.holdout == bare.text == ()


def test_a_question_alone_is_enough_to_unlearn(tmp_path):
    forget = write(tmp_path / "forget.jsonl", [{"question": "Who?"}, {"question": "Where?"}])
    retain = write(tmp_path / "retain.jsonl", [{"question": "1+1?", "answer": "2"}])
    data = load_dataset(
        DataConfig(format="files", forget=str(forget), retain=str(retain), retain_rows=None)
    )
    assert data.forget == (ForgetQuestion(0, "Who?"), ForgetQuestion(1, "Where?"))
    assert set(data.evaluation) == {"forget", "retain"}
    assert [row.answer for row in data.evaluation["forget"]] == [None, None]
    relative = DataConfig(
        format="files", path=str(tmp_path), forget="forget.jsonl", retain="retain.jsonl",
        retain_rows=None, world_facts="retain.jsonl",
    )  # fmt: skip
    data = load_dataset(relative)
    assert data.evaluation["world_facts"] == data.evaluation["retain"]


def test_own_forget_file_with_answers_and_paraphrases(tmp_path):
    row = {
        "question": "Who?",
        "answer": "Zoë Ng of Oslo",
        "secret": "Oslo",
        "paraphrased_question": "Whom?",
        "paraphrased_answer": "Zoë Ng, an Oslo woman",
        "perturbed_answer": "Ann",
    }
    write(tmp_path / "f.jsonl", [row])
    write(tmp_path / "r.jsonl", [{"question": "1+1?", "answer": "2"}])
    cfg = DataConfig(format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl")
    evaluation = load_dataset(cfg).evaluation
    (forget,), (paraphrase,) = evaluation["forget"], evaluation["paraphrase"]
    assert (forget.answer, forget.secret, forget.perturbed) == ("Zoë Ng of Oslo", "Oslo", ("Ann",))
    assert (paraphrase.question, paraphrase.secret) == ("Whom?", "Oslo")


def test_chat_messages(tmp_path):
    def chat(*pairs):
        return {"messages": [{"role": role, "content": text} for role, text in pairs]}

    write(
        tmp_path / "f.jsonl",
        [chat(("user", "Who?")), chat(("system", "Be brief."), ("user", "Where?"))],
    )
    write(tmp_path / "r.jsonl", [chat(("system", "Hi."), ("user", "1+1?"), ("assistant", "2"))])
    cfg = DataConfig(format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl")
    data = load_dataset(cfg)
    assert data.forget == (ForgetQuestion(0, "Who?"), ForgetQuestion(1, "Where?", "Be brief."))
    assert (data.retain[0].question, data.retain[0].answer) == ("1+1?", "2")
    assert data.retain[0].system == data.evaluation["retain"][0].system == "Hi."


GOOD = '{"question": "Who?", "answer": "Zoë"}\n'
TWO_TURNS = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
BAD_ROWS = [
    ('{"question": "Who?"', "not valid JSON ("),
    ("[" * 100_000, "not valid JSON ("),
    ('{"question": "W", "n": ' + "9" * 5000 + "}", "not valid JSON ("),
    ('["Who?"]', "found a list; expected a JSON object"),
    ('{"answer": "Zoë"}', "field 'question' is missing; the row has 'answer'"),
    ('{"question": 3}', "field 'question' must be a string, but is a number"),
    ('{"question": null}', "field 'question' must be a string, but is null"),
    ('{"question": " "}', "field 'question' is empty; expected some text"),
    ('{"question": "\\ud800"}', "field 'question' contains half a surrogate pair"),
    ('{"question": "Who?", "anwser": "Zoë"}', "field 'answer' is missing, but "),
    ('{"question": "Who?", "answer": [3]}', "field 'answer' must be a string, but is a number"),
    ('{"question": "Who?", "answer": []}', "field 'answer' is an empty list"),
    ('{"question": "W", "answer": "x", "secret": {}}', "field 'secret' must be a string"),
    ('{"question": "W", "answer": "x", "perturbed_answer": [1]}', "field 'perturbed_answer' must"),
    ('{"messages": "Who?"}', "field 'messages' must be a list, but is a string"),
    ('{"messages": ["Who?"]}', "field 'messages[0]' must be an object, but is a string"),
    ('{"messages": [{"role": "user"}]}', "field 'messages[0].content' must be a string"),
    ('{"messages": [{"role": "human"}]}', "field 'messages' has the roles ['human']; expected one"),
    ('{"messages": []}', "field 'messages' has the roles []; expected one turn"),
    (json.dumps({"messages": TWO_TURNS}), "field 'messages' has the roles ['user', 'assistant', "),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[e[:40] for _, e in BAD_ROWS])
def test_a_bad_row_is_named(tmp_path, row, expected):
    path = tmp_path / "f.jsonl"
    path.write_text(GOOD + row + "\n", "utf-8")
    (tmp_path / "r.jsonl").write_text(GOOD, "utf-8")
    cfg = DataConfig(format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl")
    assert message(cfg).startswith(f"{path}, line 2: {expected}")


def test_a_paraphrase_has_question_and_answer(tofu):
    rows = read(tofu / "forget10_perturbed.json")
    del rows[3]["paraphrased_answer"]
    write(tofu / "forget10_perturbed.json", rows)
    assert "line 4: field 'paraphrased_answer' is missing" in message(DataConfig(path=str(tofu)))


def test_a_retain_row_needs_an_answer(tmp_path):
    write(tmp_path / "f.jsonl", [{"question": "Who?"}])
    write(tmp_path / "r.jsonl", [{"messages": [{"role": "user", "content": "Who?"}]}])
    cfg = DataConfig(format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl")
    assert "r.jsonl, line 1: field 'answer' is missing" in message(cfg)


def test_bad_files(tofu):
    cfg = DataConfig(path=str(tofu))
    path = tofu / "retain90.json"
    for content, expected in (
        (b"", "retain90.json: no rows; expected at least one"),
        (b"\xef\xbb\xbf \n\n", "retain90.json: no rows"),
        (b"[]", "retain90.json: no rows"),
        (GOOD.encode() + "é".encode("latin-1"), "retain90.json, line 2: not UTF-8"),
        (b'[{"question": "Who?", "answer": "Zo"},\n {]', "retain90.json, line 2: not valid JSON"),
        (b'[{"question": "Who?", "answer": "Zo"},\n {}]', "retain90.json, element 2: field"),
    ):
        path.write_bytes(content)
        assert expected in message(cfg)
    path.unlink()
    path.mkdir()
    own = DataConfig(format="files", path=str(tofu), forget="forget10.json", retain="retain90.json")
    assert "retain90.json: is a directory" in message(own)
    absent = message(dataclasses.replace(own, retain="none.jsonl"))
    assert "data.retain=none.jsonl: no such file in " in absent


def test_bad_configuration(tofu):
    cfg = DataConfig(path=str(tofu))
    assert message(dataclasses.replace(cfg, format="csv")) == (
        "data.format=csv: expected tofu or files"
    )
    assert message(dataclasses.replace(cfg, retain_rows=0)).startswith("data.retain_rows=0")
    assert message(dataclasses.replace(cfg, path=str(tofu / "no"))).endswith("no such directory")
    assert message(dataclasses.replace(cfg, forget="forget1")) == (
        f"data.forget=forget1: no such split in {tofu}; splits there: forget10, retain90"
    )
    assert message(dataclasses.replace(cfg, retain="retain9")).startswith("data.retain=retain9")


def test_perturbed_rows_must_match(tofu):
    rows = read(tofu / "forget10_perturbed.json")
    write(tofu / "forget10_perturbed.json", rows[:-1])
    assert re.search(
        r"the last of 5 rows; expected as many rows .* \(6\)", message(DataConfig(path=str(tofu)))
    )
    write(tofu / "forget10_perturbed.json", [*rows[:2], {**rows[2], "question": "?"}, *rows[3:]])
    assert re.search(
        r"forget10_perturbed.json, line 3: field 'question' differs from that of .*line 3",
        message(DataConfig(path=str(tofu))),
    )


def test_hub_files_come_from_the_cache_and_nothing_else_is_asked_for(tmp_path, monkeypatch):
    repository = tmp_path / "datasets--locuslab--TOFU"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    write_tofu(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_dataset(DataConfig()) == load_dataset(DataConfig(path=str(snapshot)))
    assert load_dataset(DataConfig()).controls.holdout == ()
    with pytest.raises(UserError, match=r"cannot get retain_perturbed\.json"):
        load_dataset(DataConfig(), download_controls=True)
    for name in ("retain_perturbed", "holdout10"):
        write(snapshot / f"{name}.json", [{"question": f"{name}?", "answer": "a"}])
    found = controls_of(DataConfig())
    assert [rows[0].question for rows in (found.retain, found.holdout)] == [
        "retain_perturbed?", "holdout10?",
    ]  # fmt: skip
    (snapshot / "forget10_perturbed.json").unlink()
    text = message(DataConfig())
    assert "data.hub=locuslab/TOFU: cannot get forget10_perturbed.json" in text
    assert "pass data.path=DIRECTORY" in text


def test_configuration_is_a_structured_schema():
    schema = OmegaConf.structured(DataConfig)
    merged = OmegaConf.merge(schema, {"path": "bundled", "retain_rows": None})
    assert OmegaConf.to_object(merged) == DataConfig(path="bundled", retain_rows=None)
