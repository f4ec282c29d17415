"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from convert.directory import new_directory, read_config, write_object
from convert.families import Family
from convert.finite import all_finite, not_finite
from convert.rows import Row
from convert.tensors import DTYPES, NAMES, StoredTensor, Tensor, list_file, write_file
from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, param_specs, to_devices, to_host
from pmc_jax.model.selection import Stack
from pmc_jax.model.specs import Params
from pmc_jax.model.trainable import INPUTS, LoRA, Trainable, trainable
from pmc_jax.runtime.processes import from_first, is_first
from pmc_jax.terminal import short

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's modules."""

PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}
"""Settings of PEFT that change what an adapter computes, and the values that are supported."""

Factors = tuple[np.ndarray, np.ndarray]
"""A as `[rank, inputs]` and B as `[outputs, rank]`, as torch stores them."""


def rows_in_layers(family: Family) -> list[Row]:
    """The linear layers that can have an adapter, named as modules are in transformers."""
    rows = family.other_rows or family.rows
    return [row for row in rows if row.inputs and all(path[-1] in INPUTS for path in row.leaves)]


def module_of(row: Row, layer: int) -> str:
    """The module of a row's linear layer."""
    return row.name.format(layer).removesuffix(".weight")


def stack_at(part: Trainable, layer: int) -> Stack:
    """The stack of a layer."""
    return next(stack for stack in part.selection.stacks if layer < stack.end)


def factors_of(part: Trainable, adapter: Params, row: Row, layer: int) -> Factors | None:
    """A and B of a linear layer; None if it has no adapter.

    A layer that holds several weights, each with an adapter, has one of the sum of their ranks: A
    one above the other, B in blocks.
    """
    stack = stack_at(part, layer)
    names = [path[-1] for path in row.leaves]
    own = [name for name in names if name in stack.names]
    if not own:
        return None
    rank = part.adapter.rank if part.adapter else 0
    found = {
        name: jax.tree.map(
            lambda leaf: leaf[layer - stack.first], adapter["layers"][stack.key][name]
        )
        for name in own
    }
    a = np.concatenate([found[name]["a"].reshape(-1, rank).T for name in own])
    table = param_specs(part.cfg)["layers"]
    blocks = []
    for name in names:
        size = math.prod(table[name].shape[1 + INPUTS[name] :])
        block = np.zeros((size, len(a)), a.dtype)
        if name in own:
            first = own.index(name) * rank
            block[:, first : first + rank] = found[name]["b"].reshape(rank, -1).T
        blocks.append(block)
    return a, np.concatenate(blocks)


def adapter_config(part: Trainable, ranks: Mapping[str, int], base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Args:
        ranks: the rank of each module that has an adapter.
        base: the model's path or hub id.
    """
    adapter = part.adapter
    assert adapter is not None
    whole = len(part.selection.stacks) == 1
    other = {name: rank for name, rank in ranks.items() if rank != adapter.rank}

    def alpha(rank: int) -> float:
        return adapter.scale * (math.sqrt(rank) if adapter.rslora else rank)

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": suffixes(ranks) if whole else sorted(ranks),
        "rank_pattern": other,
        "alpha_pattern": {name: alpha(rank) for name, rank in other.items()},
    }


def suffixes(modules: Mapping[str, Any]) -> list[str]:
    """Modules that every layer has, by their names within a layer.

    A vision tower may have modules of the same last name, so that of the layer is included.
    """
    if any("language_model" in name for name in modules):
        return sorted(modules)
    return sorted({name.rpartition(".")[2] for name in modules})


def write_adapter(
    adapter: Params, part: Trainable, source: Path, destination: Path, *, base: str | None = None
) -> None:
    """Write an adapter in PEFT's format, atomically. All processes call this.

    Args:
        adapter: A and B, laid out as `part.specs` says.
        source: the directory of the model that it belongs to.
        base: the model's path or hub id for the configuration; None: `source`.

    Raises:
        UserError: if `destination` exists.
    """
    _, family, cfg = read_config(source)
    host = to_host(adapter)
    if is_first():
        factors: dict[str, Factors] = {}
        for row in rows_in_layers(family):
            for layer in range(cfg.num_layers):
                found = factors_of(part, host, row, layer)
                if found is not None:
                    factors[module_of(row, layer)] = found
        tensors, values = [], []
        for module, pair in factors.items():
            for letter, value in zip("AB", pair, strict=True):
                name = f"{PREFIX}{module}.lora_{letter}.weight"
                tensors.append(Tensor(name, value.shape, NAMES[value.dtype]))
                values.append(np.ascontiguousarray(value))
        ranks = {module: len(a) for module, (a, _) in factors.items()}
        with new_directory(destination) as directory:
            content = adapter_config(part, ranks, base or str(source))
            write_object(directory / CONFIG, content)
            write_file(directory / WEIGHTS, tensors, values)
    from_first(lambda: None)  # wait until process 0 has written


def read_settings(path: Path) -> tuple[LoRA, dict[str, Any]]:
    """The settings of an adapter, without its targets, and the content of its configuration.

    Raises:
        UserError: for an adapter of another kind, or with a setting that is not supported.
    """
    file = path / CONFIG
    config = read_object(file, expected="the configuration of an adapter in PEFT's format")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{file}: peft_type is {short(str(kind))}; expected LORA")
    for key, values in PLAIN.items():
        if key in config and config[key] not in values:
            raise UserError(f"{file}: {key} is {short(str(config[key]))}; expected {values[0]}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 or not is_positive(alpha):
        raise UserError(f"{file}: r is {rank} and lora_alpha {alpha}; expected positive numbers")
    rslora = bool(config.get("use_rslora"))
    return LoRA(rank=rank, alpha=float(alpha), rslora=rslora, path=str(path)), config


def is_positive(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max


def check_scale(module: str, rank: int, settings: LoRA, config: Mapping[str, Any]) -> None:
    """Check that a module with A of `rank` rows has the scale of all.

    Raises:
        UserError: if `alpha_pattern` or `rank_pattern` says otherwise.
    """

    def of_module(key: str, default: float) -> float:
        values = config.get(key) or {}
        if not isinstance(values, dict):
            raise UserError(f"{settings.path}/{CONFIG}: {key} is a {type(values).__name__}; "
                            "expected an object")  # fmt: skip
        for name, value in values.items():
            if not re.fullmatch(r"[\w.]+", name) or not is_positive(value):
                raise UserError(
                    f"{settings.path}/{CONFIG}: {key} has {short(name)}: {short(str(value))}; "
                    "expected a module's name, not a regular expression, and a positive number"
                )
            if f".{module}".endswith(f".{name}"):
                return float(value)
        return default

    alpha = of_module("alpha_pattern", settings.alpha)
    scale = alpha / (math.sqrt(rank) if settings.rslora else rank)
    if of_module("rank_pattern", settings.rank) != rank or not math.isclose(scale, settings.scale):
        raise UserError(
            f"{settings.path}: {module} has rank {rank} and alpha {alpha:g}; expected "
            f"{settings.rank} and {settings.alpha:g} as in all modules"
        )


def leaves_with_adapter(
    row: Row, rank: int, settings: LoRA, outputs: Mapping[str, int], b: np.ndarray
) -> list[str]:
    """The weights of a linear layer that an adapter with A of `rank` rows belongs to.

    They are those that it changes, or all if it changes none.

    Raises:
        UserError: if they do not go together with the rank.
    """
    names = [path[-1] for path in row.leaves]
    ends = np.cumsum([outputs[name] for name in names])[:-1]
    parts = zip(names, np.split(b, ends), strict=True)
    own = [name for name, part in parts if part.any()] or names
    if rank not in (settings.rank, len(own) * settings.rank):
        raise UserError(
            f"{settings.path}: {row.name} has rank {rank}; expected {settings.rank} for each of "
            f"{', '.join(names)}, or for all together"
        )
    return own


def outputs_of(cfg: ModelConfig) -> dict[str, int]:
    """The number of output channels of each weight that can have an adapter."""
    table = param_specs(cfg)["layers"]
    return {
        name: math.prod(table[name].shape[1 + inputs :])
        for name, inputs in INPUTS.items()
        if name in table
    }


def stored_factors(path: Path) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of an adapter by module and letter, A or B.

    Raises:
        UserError: for a tensor that is not part of an adapter.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for tensor in list_file(path / WEIGHTS):
        module, _, end = tensor.name.removeprefix(PREFIX).rpartition(".lora_")
        if end not in ("A.weight", "B.weight") or tensor.dtype not in DTYPES:
            raise UserError(
                f"{path / WEIGHTS}: tensor {tensor.name} of dtype {tensor.dtype} is not part of a "
                "LoRA adapter of the layers' matrices"
            )
        found.setdefault(module, {})[end[0]] = tensor
    return found


def adapter_at(path: str | Path, source: Path) -> Trainable:
    """The settings and targets of the adapter in a directory, for the model in `source`.

    Raises:
        UserError: if it is the adapter of another model, or not supported.
    """
    directory = Path(path).expanduser()
    settings, config = read_settings(directory)
    _, family, cfg = read_config(source)
    rows = {module_of(row, layer): (row, layer) for row in rows_in_layers(family)
            for layer in range(cfg.num_layers)}  # fmt: skip
    targets, outputs = [], outputs_of(cfg)
    for module, pair in stored_factors(directory).items():
        known = rows.get(module) or rows.get(other_name(module, family))
        if known is None and module.rpartition(".")[2] in ("lm_head", "embed_tokens"):
            raise UserError(
                f"{directory}: it has an adapter of {module}; those of embeddings and of the "
                "output matrix are not supported"
            )
        if known is None:
            raise UserError(
                f"{directory}: the adapter is for another model: {source} has no linear layer "
                f"{module}"
            )
        row, layer = known
        a, b = factor(pair, "A", directory), factor(pair, "B", directory)
        names = [path[-1] for path in row.leaves]
        if len(b) != sum(outputs[name] for name in names):
            raise UserError(foreign(directory, module, a, b))
        if len(names) == 1 or len(a) == settings.rank:
            check_scale(module, len(a), settings, config)
            if len(a) != settings.rank:
                raise UserError(foreign(directory, module, a, b))
        own = leaves_with_adapter(row, len(a), settings, outputs, b)
        targets += [f"layers.{layer}.{name}" for name in own]
    part = trainable(cfg, adapter=dataclasses.replace(settings, targets=targets))
    assert part is not None
    return part


def foreign(directory: Path, module: str, a: np.ndarray, b: np.ndarray) -> str:
    """What to say of A and B that have the wrong shapes."""
    return (
        f"{directory}: the adapter is for another model: {module} has A {list(a.shape)} and B "
        f"{list(b.shape)}"
    )


def other_name(module: str, family: Family) -> str:
    """A module as transformers names it, if the family's names were others once."""
    if not family.other_rows:
        return module
    return module.replace("language_model.model.", "model.language_model.", 1)


def read_adapter(part: Trainable, source: Path, dtype: DTypeLike) -> Params:
    """The adapter in the directory `part.adapter.path`, laid out as `part.specs` says.

    Raises:
        UserError: if its rank, alpha or targets are others than the settings', if it is for
            another model, damaged, or not finite.
    """
    assert part.adapter is not None and part.adapter.path is not None
    directory, wanted = Path(part.adapter.path).expanduser(), part.adapter
    own, _ = read_settings(directory)
    for key in ("rank", "alpha", "rslora"):
        here, there = getattr(wanted, key), getattr(own, key)
        if here != there:
            raise UserError(
                f"adapter.{key}={str(here).lower()}: {directory} has {str(there).lower()}; "
                f"expected adapter.rank={own.rank} adapter.alpha={own.alpha:g} "
                f"adapter.rslora={str(own.rslora).lower()}"
            )
    stored = adapter_at(directory, source)
    if stored.selection != part.selection:
        raise UserError(
            f"adapter.targets: {directory} has adapters of {described(stored)}; expected the same "
            f"targets, not {described(part)}"
        )
    _, family, cfg = read_config(source)
    tensors = {other_name(module, family): own for module, own in stored_factors(directory).items()}
    outputs = outputs_of(cfg)
    leaves: Params = jax.tree.map(lambda spec: np.zeros(spec.shape, jnp.dtype(dtype)), part.specs)
    for row in rows_in_layers(family):
        for layer in range(cfg.num_layers):
            module, stack = module_of(row, layer), stack_at(part, layer)
            if module not in tensors:
                continue
            a, b = factor(tensors[module], "A", directory), factor(tensors[module], "B", directory)
            names = [path[-1] for path in row.leaves if path[-1] in stack.names]
            rows = {name: slice(end - outputs[name], end) for name, end in zip(
                (path[-1] for path in row.leaves),
                np.cumsum([outputs[path[-1]] for path in row.leaves]), strict=True,
            )}  # fmt: skip
            shared = len(a) == wanted.rank
            for index, name in enumerate(names):
                pair = leaves["layers"][stack.key][name]
                into = {key: pair[key][layer - stack.first] for key in "ab"}
                block = slice(None) if shared else slice(
                    index * wanted.rank, (index + 1) * wanted.rank
                )  # fmt: skip
                if a[block].size != into["a"].size:
                    raise UserError(foreign(directory, module, a, b))
                into["a"][...] = a[block].T.reshape(into["a"].shape)
                into["b"][...] = b[rows[name], block].T.reshape(into["b"].shape)
            if not shared and np.count_nonzero(b) != sum(
                np.count_nonzero(leaves["layers"][stack.key][name]["b"][layer - stack.first])
                for name in names
            ):
                raise UserError(
                    f"{directory}: {module} mixes the weights {', '.join(names)} in one adapter of "
                    f"rank {len(a)}; expected one of rank {wanted.rank} for each"
                )
    return jax.tree.map(lambda leaf, spec: to_devices(leaf, *spec.axes), leaves, part.specs)


def factor(pair: Mapping[str, StoredTensor], letter: str, directory: Path) -> np.ndarray:
    """The values of A or B.

    Raises:
        UserError: if the tensor is missing, no matrix, or not finite.
    """
    if letter not in pair:
        other = next(iter(pair.values()))
        raise UserError(f"{directory}: {other.name} has no lora_{letter} beside it")
    values = pair[letter].read()
    if values.ndim != 2:
        raise UserError(f"{directory}: {pair[letter].name} has the shape {list(values.shape)}; "
                        "expected a matrix")  # fmt: skip
    if not all_finite(values):
        raise not_finite(pair[letter].path, pair[letter].name, [values])
    return values


def described(part: Trainable) -> str:
    """The targets of an adapter in words, as patterns."""
    stacks = [stack for stack in part.selection.stacks if stack.names]
    if len(part.selection.stacks) == 1:
        return ", ".join(stacks[0].names)
    return ", ".join(
        f"layers.{stack.first}:{stack.end}.{name}" for stack in stacks for name in stack.names
    )
