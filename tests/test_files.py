"""Files come back as they were written, and errors in one line say what is wrong."""

import ast
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.directory import read_config
from convert.load import eos_token_ids
from convert.native import read_native
from convert.tensors import indexed_files
from pmc_jax.data.files import (
    read_json,
    read_object,
    read_objects,
    read_text,
    read_text_lines,
    to_json,
    write_json,
    write_json_lines,
)
from pmc_jax.data.records import read_records
from pmc_jax.errors import UserError
from pmc_jax.evaluation.tofu import read_retain_log
from pmc_jax.reporting.comparison import read_outcome
from pmc_jax.reporting.evaluation_files import is_evaluation, read_evaluation
from pmc_jax.reporting.run_files import read_run
from pmc_jax.reporting.training_curves import training_curves
from pmc_jax.runs.parts import read_part
from pmc_jax.runtime.timing import time_limit

TEXTS = st.text('[]{}", \n1é', max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(value=VALUES)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@given(rows=st.lists(st.dictionaries(TEXTS | st.just("a\u2028b"), VALUES, max_size=3), max_size=4))
def test_json_lines_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_json_lines(path, rows)
    assert read_objects(path) == rows


def test_numbers_of_a_list_are_on_one_line(tmp_path):
    write_json(tmp_path / "x.json", {"curve": [0.5, 1.0, None], "names": ["a"], "rows": [[1, 2]]})
    assert (tmp_path / "x.json").read_text() == (
        '{\n  "curve": [0.5, 1.0, null],\n  "names": [\n    "a"\n  ],\n'
        '  "rows": [\n    [1, 2]\n  ]\n}\n'
    )


def test_a_file_may_be_absent(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path, missing_ok=True) is None
    assert read_object(path, missing_ok=True) == {}
    assert read_objects(path, missing_ok=True) == []
    assert read_text(path, missing_ok=True) == ""


def test_errors_name_the_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n"b": [2')
    with pytest.raises(UserError, match=r"x\.json, line 2: not valid JSON \(.*\); expected a JSON"):
        read_json(path)
    path.write_text('{"a": 1}\n\n{"b": 2\n')
    with pytest.raises(UserError, match=r"x\.json, line 3: not valid JSON \(.*\); expected a JSON"):
        read_objects(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_refused(tmp_path, constant):
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": {constant}, "b": [{constant}, 1]}}')
    with pytest.raises(UserError, match=rf"x\.json.*: not valid JSON \({constant} is no JSON"):
        read_object(path)
    with pytest.raises(UserError, match=rf"x\.json, line 1: not valid JSON \({constant} is no"):
        read_objects(path)
    assert read_object(path, finite=True) == {"a": None, "b": [None, 1]}


def test_numbers_that_json_lacks_are_written_as_null(tmp_path):
    values = {
        "a": math.nan,
        "b": [np.float64("inf"), (1, -math.inf)],
        "c": {"d": 1e308, "é": "NaN"},
    }
    expected = {"a": None, "b": [None, [1, None]], "c": {"d": 1e308, "é": "NaN"}}
    write_json(tmp_path / "x.json", values)
    write_json_lines(tmp_path / "x.jsonl", [values, {"a": 1.5}])
    assert read_json(tmp_path / "x.json") == expected
    assert read_objects(tmp_path / "x.jsonl") == [expected, {"a": 1.5}]
    for options in ({}, {"indent": 2}, {"ascii": True, "sort_keys": True}):
        assert json.loads(to_json(values, **options), parse_constant=pytest.fail) == expected
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json(values, **options, finite=True)
    plain = {"b": [0.1, -2e-300, 3], "a": "ü", "c": None}
    for options in ({"indent": 2}, {"sort_keys": True}):
        assert to_json(plain, ascii=True, **options) == json.dumps(plain, **options)


def test_all_json_is_written_in_one_place():
    """Python's own writer would write NaN. Messages between processes are no files."""
    root = Path(__file__).parent.parent
    found = {
        str(path.relative_to(root))
        for part in ("pmc_jax", "convert", "benchmarks", "examples")
        for path in (root / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.ImportFrom)
        and {"dump", "dumps", "JSONEncoder"}
        & {getattr(node, "attr", None), *(own.name for own in getattr(node, "names", ()))}
    }
    # The fuzzer writes what is not valid on purpose.
    assert found - {"benchmarks/fuzz.py"} == {
        "pmc_jax/data/files.py", "pmc_jax/runtime/processes.py",
    }  # fmt: skip


def test_a_part_of_an_evaluation(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"lacking": "no answers"}')
    assert read_part(path) == {"lacking": "no answers"}
    path.write_text('{"rouge": 1}')
    with pytest.raises(UserError, match=r"x\.json: neither 'seconds' nor .*overwrite=true"):
        read_part(path)


MISSING = {"missing": (None, "no such file; expected ")}
DIRECTORY = {"directory": (..., "is a directory; expected ")}
ENCODING = {"encoding": (b"\n\xff\xfe", "not UTF-8 (byte 1); expected ")}
SYNTAX = {"syntax": (b'{"a": 1,\n "b"', "not valid JSON (")}
LIST = {"type": (b"[1]\n", "found a ")}
ANY_FILE = MISSING | DIRECTORY | ENCODING
ALL = ANY_FILE | SYNTAX | LIST
PRESENT = DIRECTORY | ENCODING | SYNTAX | LIST

Reader = Callable[[Path], object]
READERS: dict[str, tuple[Reader, str, dict[str, tuple[object, str]]]] = {
    "text": (read_text, "t.txt", ANY_FILE),
    "text lines": (read_text_lines, "t.txt", ANY_FILE),
    "JSON": (read_json, "x.json", ANY_FILE | SYNTAX),
    "object": (read_object, "x.json", ALL),
    "objects": (read_objects, "x.jsonl", ALL),
    "records": (read_records, "rows.jsonl", ALL),
    "part": (read_part, "part.json", PRESENT),
    "retain log": (read_retain_log, "TOFU_EVAL.json", ALL),
    "run": (lambda path: read_run(path.parent), "summary.json", ALL),
    "outcome": (lambda path: read_outcome(path.parent), "summary.json", ALL),
    "evaluation": (lambda path: read_evaluation(path.parent), "summary.json", ALL),
    "is evaluation": (lambda path: is_evaluation(path.parent), "summary.json", PRESENT),
    "curves": (lambda path: training_curves(path.parent / "model"), "metrics.jsonl", PRESENT),
    "config": (lambda path: read_config(path.parent), "config.json", ALL),
    "generation config": (
        lambda path: eos_token_ids(path.parent, 9), "generation_config.json", PRESENT
    ),
    "native": (lambda path: read_native(path.parent), "model_config.json", ALL),
    "index": (
        lambda path: indexed_files(path.parent), "model.safetensors.index.json", ALL
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "problem"), [(name, problem) for name in READERS for problem in READERS[name][2]]
)
def test_every_reader_says_in_one_line_what_is_wrong(tmp_path, name, problem):
    read, file, problems = READERS[name]
    content, expected = problems[problem]
    path = tmp_path / file
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    where = rf"{re.escape(str(path))}(, (line|element) \d+)?: "
    assert re.match(where + re.escape(expected), message), message
    assert "; expected " in message and "\n" not in message


@pytest.mark.parametrize("name", [name for name in READERS if "encoding" in READERS[name][2]])
def test_no_reader_waits_for_a_pipe(tmp_path, name):
    read, file, _ = READERS[name]
    os.mkfifo(tmp_path / file)
    with pytest.raises(UserError, match=r": not a regular file; expected "), time_limit(10):
        read(tmp_path / file)


def test_a_device_is_no_file():
    with pytest.raises(UserError, match="/dev/zero: not a regular file; expected a text file"):
        read_text(Path("/dev/zero"))


def test_a_missing_part_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"part\.json: no such file; the same command measures it"):
        read_part(tmp_path / "part.json")
