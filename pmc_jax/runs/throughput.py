"""How fast steps are, against what the devices can do."""

from collections.abc import Mapping
from typing import Any

import jax

TERA = 10**12
PEAKS = {
    "A100": 312 * TERA, "H100": 989 * TERA, "H200": 989 * TERA, "B200": 2250 * TERA,
    "L40S": 362 * TERA, "L4": 121 * TERA,
    "TPU v4": 275 * TERA, "TPU v5 lite": 197 * TERA, "TPU v5p": 459 * TERA, "TPU v5": 459 * TERA,
    "TPU v6 lite": 918 * TERA,
}  # fmt: skip
"""Dense bfloat16 FLOP/s as makers give them, by part of a device's name; the first that fits."""

FLOPS_PER_TOKEN = 6
"""FLOPs of training per weight and token: two forward, four backward (Kaplan et al. 2020)."""


def peak_flops(kind: str) -> int | None:
    """A device's peak by its name; None where it is not known, as on a CPU."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def speeds(row: Mapping[str, Any], parameters: int) -> dict[str, float]:
    """Tokens per second and model FLOP/s of a step's line, and the model FLOPs utilisation.

    The last (MFU, Chowdhery et al. 2022, without attention) only where the devices' peak is
    known. Tokens are those of the rows, without padding.
    """
    trained = row["tokens_trained"] / row["seconds"]["train"]
    found = {"train_tokens": trained}
    if row.get("tokens_sampled") and "sample" in row["seconds"]:
        found["sample_tokens"] = row["tokens_sampled"] / row["seconds"]["sample"]
    found["train_model_flops"] = FLOPS_PER_TOKEN * parameters * trained
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is not None:
        found["mfu"] = found["train_model_flops"] / (peak * jax.device_count())
    return found
