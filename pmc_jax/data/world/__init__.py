"""The bundled world: fictitious authors, real ones and facts, in TOFU's shape."""

from pmc_jax.data.world.files import DEFAULT_SEED, world_files, write_world
from pmc_jax.data.world.generate import World, make_world
from pmc_jax.data.world.stream import Mix, stream

__all__ = [
    "DEFAULT_SEED",
    "Mix",
    "World",
    "make_world",
    "stream",
    "world_files",
    "write_world",
]
