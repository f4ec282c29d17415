"""What ships in the package beside the code: the bundled world, made by `pmc_jax.world`."""

from pathlib import Path

WORLD_DATA = Path(__file__).parent / "world" / "data"
WORLD_MODEL = Path(__file__).parent / "world" / "model"
