"""Whole runs on eight virtual devices, in a process of their own.

`python tests/eight_device_runs.py DIRECTORY DATA [KEY=VALUE…] LAYOUT…` unlearns with the bundled
model in float64 once on each layout and writes to DIRECTORY/runs/LAYOUT. A layout is `1x1`, `4x2`,
…; `8x1:4x2` changes from one to the other halfway.
"""

import contextlib
import sys
from pathlib import Path

import jax
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pmc_jax.cli.config import config_directory
from pmc_jax.train import train
from pmc_jax.training import loop


class Halfway(Exception):
    """Raised to stop a run halfway."""


def go(directory: Path, data: str, name: str, mesh: str, changes: list[str]) -> None:
    """Run on a mesh, or continue the run that is there."""
    overrides = [
        "experiment=demo", "data=tofu_forget10", f"name={name}", f"mesh={mesh}",
        f"data.path={data}", f"runs_dir={directory / 'runs'}", "model.dtype=float64",
        "model.remat=full", "method.samples=3", "method.max_new_tokens=8", "method.min_len=0",
        "method.top_k=40", "method.top_p=0.95",
        "training.epochs=4", "training.batch_size=2", "training.max_length=64",
        "evaluation.max_new_tokens=8", "evaluation.attack_samples=2", "data.retain_rows=4",
        "checkpoints.every=1", *changes,
    ]  # fmt: skip
    with initialize_config_dir(str(config_directory().resolve()), version_base="1.3"):
        train(OmegaConf.to_object(compose("train", overrides=overrides)))


def stop_after(steps: int) -> None:
    """Make the next run stop after this many steps."""
    original = loop.save

    def stopping(manager, step, *rest):
        original(manager, step, *rest)
        manager.wait_until_finished()
        if step >= steps:
            loop.save = original
            raise Halfway

    loop.save = stopping


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    # On a few cores, eight devices that run two compiled functions at once can block each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    directory, data, *rest = sys.argv[1:]
    changes = [text for text in rest if "=" in text]
    layouts = [text for text in rest if "=" not in text]
    for layout in layouts:
        first, _, then = layout.partition(":")
        name = layout.replace(":", "-")
        if then:
            stop_after(2)
            with contextlib.suppress(Halfway):
                go(Path(directory), data, name, first, changes)
        go(Path(directory), data, name, then or first, changes)
