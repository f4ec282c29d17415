"""Malformed inputs of every kind are accepted with sense or refused in one line."""

import pytest

from benchmarks.fuzz import KINDS, fuzz

COUNTS = {"command lines": 25, "configurations": 300, "tokenizers": 25, "weights": 60,
          "adapters": 60, "data files": 60}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_is_wrong(kind):
    tally = fuzz(kind, COUNTS[kind], seed=1)
    assert not tally.wrong
    assert tally.accepted and tally.refused
    assert tally.tried == COUNTS[kind]


def test_the_fuzzer_sees_what_is_wrong(monkeypatch):
    """An error that is no `UserError`, and a number without sense."""
    monkeypatch.setattr("benchmarks.fuzz.param_count", lambda cfg: 0)
    found = fuzz("configurations", 30, seed=1)
    assert found.wrong and all("Nonsense '0 parameters'" in line for line in found.wrong)
    monkeypatch.setattr("benchmarks.fuzz.read_config", lambda directory: {}["x"])
    assert len(fuzz("configurations", 5, seed=1).wrong) == 5
