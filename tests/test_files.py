"""Files that are written whole, and read with one line about what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmc_jax.errors import UserError
from pmc_jax.runs.files import read_json, read_part, write_json

TEXTS = st.text('[]{}", \n1é', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(value=VALUES)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_numbers_of_a_list_are_on_one_line(tmp_path):
    write_json(tmp_path / "x.json", {"curve": [0.5, 1.0, None], "names": ["a"], "rows": [[1, 2]]})
    assert (tmp_path / "x.json").read_text() == (
        '{\n  "curve": [0.5, 1.0, null],\n  "names": [\n    "a"\n  ],\n'
        '  "rows": [\n    [1, 2]\n  ]\n}\n'
    )


def test_what_is_no_json_is_told_by_its_place(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    path.write_text('{"a": 1,\n"b": [2')
    with pytest.raises(UserError, match=r"x\.json: not JSON \(.*, line 2\)$"):
        read_json(path)
    path.write_text('{"lacking": "no answers"}')
    assert read_part(path) == {"lacking": "no answers"}
