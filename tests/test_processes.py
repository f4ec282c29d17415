"""Several processes of one run on one machine: the same results, one writer, a common end."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import one_of_several
import pytest
from safetensors.numpy import load_file

from pmc_jax.errors import UserError
from pmc_jax.runtime.processes import DistributedConfig, agree, from_first, is_first, join

REPOSITORY = Path(__file__).parent.parent
DEVICES = 4


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count: int, kind: str, *arguments: object) -> list[tuple]:
    """Run `count` processes with four devices in all; return their status, output and errors."""
    port = free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "NPROC": "16",  # XLA's threads; with few, devices could block each other
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
    }
    script = str(REPOSITORY / "tests" / "one_of_several.py")
    commands = [
        [sys.executable, script, kind, f"{count}:{port}:{i}", *map(str, arguments)]
        for i in range(count)
    ]
    running = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    found = []
    try:
        for process in running:
            out, errors = process.communicate(timeout=400)
            found.append((process.returncode, out, errors))
    finally:
        for process in running:
            process.kill()
    return found


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def check_parts(count: int) -> None:
    """Every process has the results of one device, and holds only its own rows."""
    expected = one_of_several.parts()
    found = []
    for status, out, errors in start(count, "parts"):
        assert status == 0, errors[-3000:]
        found.append(json.loads(last_line(out)))
    each = one_of_several.ROWS // count
    for process, own in enumerate(found):
        assert own["responses"] == expected["responses"]
        np.testing.assert_allclose(own["losses"], expected["losses"], rtol=1e-12)
        np.testing.assert_allclose(own["sums"], expected["sums"], rtol=1e-10)
        assert own["rows"] == list(range(each * process, each * (process + 1)))
        assert own["first"] == {"process": 0, "infinite": float("inf")}
        assert own["agreed"] == [True, False]
        assert own["refused"] == (
            f"mesh={DEVICES // count}x1: expected all {DEVICES} devices of the {count} processes"
        )


@pytest.mark.slow
def test_two_processes_find_what_one_finds(x64, quick_compilation):
    check_parts(2)


@pytest.mark.slow
def test_four_processes_find_what_one_finds(x64, quick_compilation):
    check_parts(4)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_told_by_all():
    (first, _, told), (second, _, own) = start(2, "fail")
    assert (first, second) == (2, 2)
    assert last_line(own) == "error: process 1 of 2: the disk of this process is full"
    assert last_line(told) == "error: process 1 of 2 stopped: the disk of this process is full"


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_a_sentence():
    started = time.monotonic()
    (first, _, told), (second, _, _), (third, _, told_too) = start(3, "kill")
    assert second == -9 and first == third == 1
    for process, text in ((0, told), (2, told_too)):
        assert last_line(text).startswith(f"error: process {process} of 3 stops because another")
    assert time.monotonic() - started < 60  # ten of them are the heartbeat's


def test_alone_there_is_nobody_to_agree_with():
    assert is_first() and agree(True) and not agree(False)
    assert from_first(lambda: (1, 2)) == (1, 2)
    join(DistributedConfig())
    with pytest.raises(UserError, match="expected coordinator_address=HOST:PORT, num_processes"):
        join(DistributedConfig(num_processes=2))


def run(count: int, tofu_dir: Path, model: Path, out: Path, *arguments: str) -> list[tuple]:
    """Start a whole short run in float64."""
    at = [argument for argument in arguments if argument.startswith("at=")]
    return start(
        count, "train", *at, "experiment=tofu_llama3_2_3b", f"model.path={model}",
        f"data.path={tofu_dir}", "prompt.template=plain", "prompt.system=null",
        "model.dtype=float64", "model.remat=none", f"runs_dir={out.parent}", f"name={out.name}",
        "training.epochs=2", "training.batch_size=2", "training.accumulation=1",
        "training.max_length=64", "optimizer.learning_rate=1e-3", "evaluation.max_new_tokens=6",
        "evaluation.attack_samples=2", "data.retain_rows=4", "checkpoints.every=1",
        *(argument for argument in arguments if argument not in at),
    )  # fmt: skip


PMC = ("method.samples=3", "method.max_new_tokens=6", "method.min_len=1")


GLOO = re.compile(
    r"\[Gloo\] Rank |is connected to|peer ranks\. |"
    r"Expected number of connected peer ranks is : |[\d\s]"
)
"""The pieces of Gloo's messages. Its threads write at once, so two lines can mix."""


def assert_ended_well(processes: list[tuple]) -> None:
    for process, (status, out, errors) in enumerate(processes):
        assert status == 0, errors[-3000:]
        said = GLOO.sub("", out)
        assert bool(said) == (process == 0), said


def files_of(directory: Path) -> set[str]:
    """All files except those of Orbax; the names of TensorBoard's files are shortened."""
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    return {re.sub(r"tfevents.*", "tfevents", name) for name in names if "/state/" not in name}


def assert_same_run(found: Path, expected: Path) -> None:
    def steps(directory: Path) -> list[dict]:
        return [json.loads(line) for line in (directory / "metrics.jsonl").open()]

    assert files_of(found) == files_of(expected)
    own, other = steps(found), steps(expected)
    assert len(own) == len(other)
    for row, wanted in zip(own, other, strict=True):
        assert row.keys() == wanted.keys()
        for key in row.keys() - {"seconds", "per_second"}:
            if "loss" in key:
                assert row[key] == pytest.approx(wanted[key], abs=1e-10), key
            elif "norm" in key:  # of weights that differ by rounding
                assert row[key] == pytest.approx(wanted[key], rel=1e-9), key
            else:
                assert row[key] == wanted[key], key
    assert (found / "samples.jsonl").read_text() == (expected / "samples.jsonl").read_text()
    assert (found / "inputs.json").read_text() == (expected / "inputs.json").read_text()
    weights, wanted_weights = (load_file(d / "model/model.safetensors") for d in (found, expected))
    for name, values in wanted_weights.items():
        np.testing.assert_allclose(weights[name], values, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_runs_are_the_same_in_several_processes(count, tofu_dir, checkpoint_dir, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert_ended_well(run(1, tofu_dir, checkpoint_dir, alone, *PMC, "mesh=1x1"))
    assert_ended_well(run(count, tofu_dir, checkpoint_dir, together, *PMC))
    assert_same_run(together, alone)
    again = run(count, tofu_dir, checkpoint_dir, together, *PMC)
    assert_ended_well(again)
    assert "finished run" in again[0][1]


@pytest.mark.slow
def test_a_baseline_with_a_frozen_target_is_the_same(tofu_dir, checkpoint_dir, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    settings = ("method=npo", "method.retain_loss=kl")
    assert_ended_well(run(1, tofu_dir, checkpoint_dir, alone, *settings, "mesh=1x1"))
    assert_ended_well(run(2, tofu_dir, checkpoint_dir, together, *settings))
    assert_same_run(together, alone)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_a_step_that_any_number_goes_on_from(
    tofu_dir, checkpoint_dir, tmp_path
):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert_ended_well(run(1, tofu_dir, checkpoint_dir, alone, *PMC, "mesh=1x1"))
    ended = run(2, tofu_dir, checkpoint_dir, stopped, *PMC, "at=1:1:SIGTERM")
    assert [status for status, _, _ in ended] == [143, 143]
    assert last_line(ended[0][2]) == "stopped after step 2 of 4; the same command continues"
    assert "stopped" not in ended[1][2]
    assert_ended_well(run(1, tofu_dir, checkpoint_dir, stopped, *PMC, "mesh=2x2"))
    assert_same_run(stopped, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "statuses", "line"),
    [
        ("error", [2, 2], "error: process 1 of 2 stopped: the disk of this process is full"),
        ("SIGKILL", [1, -9], "error: process 0 of 2 stops because another one died"),
    ],
)
def test_a_run_ends_with_one_of_its_processes_and_goes_on(
    what, statuses, line, tofu_dir, checkpoint_dir, tmp_path
):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert_ended_well(run(1, tofu_dir, checkpoint_dir, alone, *PMC, "mesh=1x1"))
    ended = run(2, tofu_dir, checkpoint_dir, stopped, *PMC, f"at=1:2:{what}")
    assert [status for status, _, _ in ended] == statuses
    assert last_line(ended[0][2]).startswith(line)
    assert_ended_well(run(2, tofu_dir, checkpoint_dir, stopped, *PMC))
    assert_same_run(stopped, alone)
