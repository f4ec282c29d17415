"""Patterns that select weights by name and layer.

`NAME` selects a weight in all layers, `layers.WHICH.NAME` in some layers, `layers.WHICH` all
weights of some layers. `NAME` is a weight's name as in `param_specs`, a shell pattern such as
`*_norm`, or one of `GROUPS`. `WHICH` is the number of a layer or a slice as in Python: `-4:` are
the last four.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from pmc_jax.errors import UserError
from pmc_jax.model.config import ModelConfig
from pmc_jax.terminal import short

GROUPS = {"all": ("*",), "attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
"""Names for several weights; they include the weights' biases."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Consecutive layers, from `first` up to `end`, and the selected weights in each of them."""

    first: int
    end: int
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the stack in a tree of selected weights."""
        return str(self.first)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selected weights: those of the layers by stack, and the names of those outside."""

    stacks: tuple[Stack, ...]
    outside: tuple[str, ...] = ()


def as_list(patterns: str | Sequence[str]) -> list[str]:
    """One pattern, or several."""
    return [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]


def select(
    patterns: str | Sequence[str],
    cfg: ModelConfig,
    names: Collection[str],
    outside: Collection[str] = (),
    *,
    setting: str,
) -> Selection:
    """The weights that any of the patterns matches.

    Args:
        names: the weights of a layer that can be selected.
        outside: those outside the layers.
        setting: the setting that holds the patterns, for errors.

    Raises:
        UserError: for a pattern that matches nothing, with the nearest that does.
    """
    chosen: list[set[str]] = [set() for _ in range(cfg.num_layers)]
    beside: set[str] = set()
    if not as_list(patterns):
        raise UserError(f"{setting}=[]: expected at least one pattern, such as mlp")
    for pattern in as_list(patterns):
        which, name = _parts(pattern, setting)
        own = {one for one in names if _matches(one, name)}
        other = {one for one in outside if which is None and _matches(one, name)}
        layers = range(cfg.num_layers) if which is None else _layers(which, cfg.num_layers)
        if not other and not (own and layers):
            last = cfg.num_layers - 1
            why = (
                f"there is no such layer; expected 0 to {last}, or a slice of them"
                if own
                else f"matches no weight; {_nearest(name, names, outside)}"
            )
            raise UserError(f"{setting}={short(pattern)}: {why}")
        beside |= other
        for layer in layers:
            chosen[layer] |= own
    return Selection(_stacks(chosen), tuple(sorted(beside)))


def _parts(pattern: str, setting: str) -> tuple[str | None, str]:
    """WHICH and NAME of a pattern; without WHICH, None."""
    if pattern != "layers" and not pattern.startswith("layers."):
        return None, pattern
    found = re.fullmatch(r"layers\.(-?\d+|-?\d*:-?\d*)(?:\.(.+))?", pattern)
    if found is None:
        raise UserError(
            f"{setting}={short(pattern)}: expected layers.WHICH.NAME, where WHICH is a number or a "
            "slice, such as layers.-4:.mlp"
        )
    return found[1], found[2] or "*"


def _layers(which: str, count: int) -> range:
    if ":" not in which:
        layer = int(which)
        return range(count)[layer:][:1] if -count <= layer < count else range(0)
    first, end = (int(text) if text else None for text in which.split(":"))
    return range(count)[first:end]


def _matches(name: str, pattern: str) -> bool:
    wanted = GROUPS.get(pattern)
    if wanted is None:
        return fnmatchcase(name, pattern)
    return any(fnmatchcase(name.removesuffix("_bias"), one) for one in wanted)


def _nearest(name: str, names: Collection[str], outside: Collection[str]) -> str:
    valid = [*names, *outside, *GROUPS]
    # Hugging Face's names, such as q_proj, end so.
    near = difflib.get_close_matches(name.removesuffix("_proj"), valid, 1)
    hint = f"the nearest is {near[0]}; " if near else ""
    return f"{hint}expected one of {', '.join(valid)}, or layers.WHICH.NAME"


def _stacks(chosen: Sequence[set[str]]) -> tuple[Stack, ...]:
    """Layers in a row with the same selected weights."""
    found: list[Stack] = []
    for layer, own in enumerate(chosen):
        names = tuple(sorted(own))
        if found and found[-1].names == names:
            found[-1] = dataclasses.replace(found[-1], end=layer + 1)
        else:
            found.append(Stack(layer, layer + 1, names))
    return tuple(found)
