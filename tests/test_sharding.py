"""Training and sampling on a mesh of eight virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, auto_layout, choose_mesh, mesh_layout, param_count
from pmc_jax.model.kernels import native

REPOSITORY = Path(__file__).parent.parent
CFG = ModelConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=256, num_layers=2, num_heads=6,
    num_kv_heads=2, head_dim=16,
)  # fmt: skip


def on_eight_devices(script: str, *arguments: object) -> str:
    """The last line that a script of this directory prints."""
    command = [sys.executable, str(REPOSITORY / "tests" / script), *map(str, arguments)]
    # NPROC sets the number of XLA's threads. With fewer threads than concurrent executions, devices
    # could block each other.
    # PATH leads to the C++ compiler, and XDG_CACHE_HOME to the compiled kernels.
    names = "PATH", "XDG_CACHE_HOME"
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"PYTHONPATH": str(REPOSITORY), "NPROC": "32"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("text", ["4by2", "0x2", "4x", "x", "-1x2", "4x2x1", "AUTO", ""])
def test_a_layout_is_two_numbers(text):
    assert mesh_layout("16x4") == (16, 4)
    with pytest.raises(UserError, match=f"mesh={text}: expected DATAxMODEL"):
        mesh_layout(text)


def test_the_automatic_layout_shards_matrices_only_where_memory_requires_it():
    size = 4 * param_count(CFG)
    assert auto_layout(8, None, CFG, "float32") == (8, 1)
    assert auto_layout(8, 4 * size, CFG, "float32") == (8, 1)
    assert auto_layout(8, 2 * size, CFG, "float32") == (4, 2)
    assert auto_layout(8, 2 * size, CFG, "bfloat16") == (8, 1)
    assert auto_layout(6, 4 * size // 3 + 1, CFG, "float32") == (2, 3)
    # Six heads do not divide over four or eight devices, and two devices are too few here.
    assert auto_layout(8, 4 * size // 3 + 1, CFG, "float32") == (1, 8)


def test_one_device_needs_no_mesh():
    assert len(jax.devices()) == 1
    assert choose_mesh("auto", CFG, "float32") is None
    assert choose_mesh("1x1", CFG, "float32") is None
    with pytest.raises(UserError, match="a mesh of 4x2 needs 8 devices; there are 1"):
        choose_mesh("4x2", CFG, "float32")


@pytest.fixture(scope="module")
def steps():
    """The output of `eight_device_steps.py` by layout, for 4 key/value heads."""
    return json.loads(on_eight_devices("eight_device_steps.py", 4))


LAYOUTS = ["8x1", "4x2", "2x4", "1x8"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_train_steps_are_those_of_one_device(steps, layout):
    found = steps[f"4 {layout}"]
    assert found["loss_error"] < 1e-12
    # Three steps of Adam, which amplifies differences where gradients are near 0.
    assert found["error"] < 1e-11
    assert found["placed"] == [True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["undial", "rmu"])
def test_frozen_weights_are_sharded_like_those_that_are_trained(steps, layout, method):
    found = steps[f"4 {layout}"]["methods"][method]
    assert found["loss"] < 1e-12 and found["error"] < 1e-12
    assert found["placed"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_gathered_one_layer_at_a_time(steps, layout):
    """Outside the loop over layers, only embeddings, head and final norm are gathered."""
    model = int(layout[2])
    outside = ([1040 // model, 128], [128, 1040 // model], [128])
    for kind, shape, depth in steps[f"4 {layout}"]["train"]:
        assert kind in ("all-gather", "all-reduce", "reduce-scatter")
        assert depth >= 0
        if kind == "all-gather" and depth < 2:
            assert shape in outside
        if kind == "all-gather" and layout[0] != "1":
            assert np.prod(shape) <= max(1040 * 128, 272 * 128) / model


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoding_moves_neither_weights_nor_cache(steps, layout):
    """The only collectives are sums of partial products over "model", of the hidden state's size.

    This holds with all layers in one stack and with one stack per layer, and both give the same
    logits.
    """
    data, model = int(layout[0]), int(layout[2])
    step = steps[f"4 {layout}"]
    for found in (step, step["unrolled"]):
        assert {(kind, *shape) for kind, shape, _ in found["decode"]} <= {
            ("all-reduce", 16 // data, 5, 128),
            ("all-reduce", 16 // data * 5, 128),  # the same with tokens along one axis
        }
        assert bool(found["decode"]) == (model > 1)
        kept, part = found["cache"]
        assert kept
        # Eight devices cannot divide four heads, so each device holds all of them.
        assert part == (1 / 8 if model < 8 else 1)
    assert step["unrolled"]["error"] < 1e-5


@pytest.fixture(scope="module")
def kernels():
    """The output of `eight_device_kernels.py`."""
    return json.loads(on_eight_devices("eight_device_kernels.py"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_attend_to_the_heads_of_their_device(kernels, layout, backend):
    """Nothing is moved between devices, and results and gradients are those of one device."""
    if backend == "cpu" and not native.available():
        pytest.skip("needs a C++ compiler")
    for name in ("whole sequences", "decode step", "decode step after drafts"):
        found = kernels[f"{layout} {backend} {name}"]
        assert found["error"] < 2e-6
        # Eight devices cannot divide four key/value heads, so XLA's operations attend.
        assert (found["kernel"] == "xla") == bool(found["moved"]) == (layout == "1x8"), name


@pytest.mark.slow
def test_bfloat16_moments_are_the_same_on_a_mesh(steps):
    """In float64, where another order of sums almost never changes the rounded bfloat16."""
    found = steps["4 bfloat16 moments"]
    assert found["placed"] == [True, True] and found["dtypes"] == ["bfloat16"]
    assert found["same"] > 0.9999


RUNS = ["1x1", "4x2", "8x1:2x4", "2x4:1x8", "4x2:1x1"]


@pytest.mark.slow
def test_runs_are_the_same_on_every_layout(tofu_dir, tmp_path):
    """In float64: equal responses, and losses within 1e-9. Most runs change the layout halfway."""
    on_eight_devices("eight_device_runs.py", tmp_path, tofu_dir, *RUNS)

    def read(name: str) -> tuple[list[dict], dict, dict]:
        directory = tmp_path / "runs" / name.replace(":", "-")
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        answers = json.loads((directory / "evaluation/after.json").read_text())["answers"]
        return (
            [json.loads(line) for line in lines],
            answers,
            load_file(directory / "model" / "model.safetensors"),
        )

    steps, answers, weights = read("1x1")
    assert any(0 < row["mean_selected_score"] < 1 for row in steps)
    for name in RUNS[1:]:
        found, found_answers, found_weights = read(name)
        assert [row["step"] for row in found] == [row["step"] for row in steps]
        for row, expected in zip(found, steps, strict=True):
            for key in ("questions", "questions_sampled", "tokens_sampled", "mean_selected_score"):
                assert row[key] == expected[key], (name, key)
            for key in ("loss", "forget_loss", "retain_loss"):
                assert row[key] == pytest.approx(expected[key], abs=1e-9), (name, key)
        assert found_answers == answers
        for leaf, values in weights.items():
            np.testing.assert_allclose(found_weights[leaf], values, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_evaluations_are_the_same_on_every_layout(tofu_dir, tmp_path):
    """In float64: equal answers, and every measure within 1e-6, also after relearning."""
    layouts = ("1x1", "4x2", "1x8")
    on_eight_devices("eight_device_evaluations.py", tmp_path, tofu_dir, *layouts)

    def read(layout: str) -> tuple[dict, list]:
        summary = json.loads((tmp_path / layout / "summary.json").read_text())
        quality = json.loads((tmp_path / layout / "models/bundled/quality.json").read_text())
        return summary["measures"]["bundled"], quality["answers"]

    measures, answers = read("1x1")
    assert len({key.partition("_")[0] for key in measures}) > 8
    for layout in layouts[1:]:
        found, found_answers = read(layout)
        assert found_answers == answers
        assert found == pytest.approx(measures, abs=1e-6), layout
