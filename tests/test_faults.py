"""A run that is killed five times ends as an uninterrupted one."""

import pytest

from benchmarks.faults import measure


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    result = measure(tmp_path, kills=5, seed=0)
    assert result["differences"] == []
    assert result["kills"] == 5
