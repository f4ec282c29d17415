"""Whole evaluations on eight virtual devices, in a process of their own.

`python tests/eight_device_evaluations.py DIRECTORY DATA LAYOUT…` evaluates the bundled model in
float64 once on each layout (`1x1`, `4x2`, …) and writes the results to DIRECTORY/LAYOUT.
"""

import sys

import jax
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pmc_jax.cli.config import config_directory
from pmc_jax.cli.evaluate import evaluate


def go(directory: str, data: str, mesh: str) -> None:
    """Run one evaluation on a mesh."""
    overrides = [
        "suite=full", "data=tofu_forget10", f"data.path={data}", f"name={mesh}", f"mesh={mesh}",
        f"evaluations_dir={directory}", "model.dtype=float64", "data.retain_rows=4",
        "max_length=64", "evaluation.max_new_tokens=8", "evaluation.attack_samples=3",
        "robustness.steps=[2]", "robustness.bits=[4]", "robustness.examples=2",
    ]  # fmt: skip
    with initialize_config_dir(str(config_directory().resolve()), version_base="1.3"):
        evaluate(OmegaConf.to_object(compose("evaluate", overrides=overrides)))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    # On a few cores, eight devices that run two compiled functions at once can block each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    directory, data, *layouts = sys.argv[1:]
    for layout in layouts:
        go(directory, data, layout)
