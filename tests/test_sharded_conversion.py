"""Checkpoints are loaded directly into a sharding, on eight virtual devices."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_llama
from eight_devices import LAYOUTS

import convert.__main__ as convert

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The output of `eight_devices.py` for 4 heads, 2 key/value heads, and 97 tokens (a prime)."""
    directory = tmp_path_factory.mktemp("sharded")
    random_llama(attention_bias=True).save_pretrained(directory / "hf")
    command = [sys.executable, "-m", "convert", "from-hf", "hf", "native", "--mesh", "4x2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, cwd=directory, env=environment, capture_output=True)
    script = REPOSITORY / "tests" / "eight_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), str(directory / "hf"), str(directory / "native")],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def expected_shard(leaf, layout):
    """Embedding axes over "data"; heads, MLP and vocabulary over "model", where they divide."""
    data, model = layout
    parts = {"embed": data, "vocab": model, "heads": model, "kv_heads": model, "mlp": model}
    return [
        size // parts.get(axis, 1) if size % parts.get(axis, 1) == 0 else size
        for size, axis in zip(leaf["shape"], leaf["axes"], strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_leaf_lands_in_its_shards(found, layout):
    result = found["{}x{}".format(*layout)]
    for name, leaf in result["leaves"].items():
        assert len(leaf["shards"]) == math.prod(layout)
        assert all(shard == expected_shard(leaf, layout) for shard in leaf["shards"]), name
    assert result["equal"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_device_holds_more_than_its_shards_and_a_tensor(found, layout):
    result = found["{}x{}".format(*layout)]
    shards = sum(4 * math.prod(leaf["shards"][0]) for leaf in result["leaves"].values())
    tensors = [leaf["shape"][leaf["axes"][0] == "layers" :] for leaf in result["leaves"].values()]
    assert shards <= result["most_bytes"] <= shards + max(4 * math.prod(t) for t in tensors)


def test_a_mesh_that_cannot_be_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert.main(["from-hf", "hf", "native", "--mesh", "4by2"])
    assert "mesh=4by2: expected DATAxMODEL, for instance 4x2" in capsys.readouterr().err
