"""From parameters to Hugging Face directories."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, DTypeLike

from convert.directory import copy_files, new_directory, read_config, write_object
from convert.families import LLAMA, Family
from convert.finite import all_finite, beyond_range, share
from convert.load import (
    OnTensor,
    find_tensors,
    rows_of,
    stored_shape,
    tensor_names,
    untouched_tensors,
)
from convert.native import is_native, read_native
from convert.rows import Row
from convert.tensors import (
    DTYPES,
    FILE_BYTES,
    NAMES,
    StoredTensor,
    Tensor,
    widest_first,
    write_tensors,
)
from pmc_jax.data.prompt_config import PROMPT_FILE
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, to_host
from pmc_jax.model.specs import Params
from pmc_jax.runtime.processes import from_first, is_first


def dtype_name(dtype: DTypeLike) -> str:
    """The safetensors name of a dtype.

    Raises:
        UserError: if it is no dtype for weights.
    """
    try:
        return NAMES[jnp.dtype(dtype)]
    except (KeyError, TypeError):
        known = ", ".join(known.name for known in NAMES)
        raise UserError(f"dtype {dtype!r}: expected one of {known}") from None


def stored_dtypes(
    directory: Path, family: Family, cfg: ModelConfig, dtype: DTypeLike | None = None
) -> dict[str, str]:
    """The safetensors dtype of each tensor of a Hugging Face directory or native checkpoint.

    Args:
        dtype: the dtype of all tensors instead.
    """
    if is_native(directory):
        found = read_native(directory)[1]
    else:
        found = {name: t.dtype for name, t in find_tensors(directory, family, cfg).items()}
    return found if dtype is None else dict.fromkeys(found, dtype_name(dtype))


def cast(
    value: np.ndarray, dtype: np.dtype, name: str, *, check_weights: bool = True
) -> np.ndarray:
    """`value` in `dtype`, contiguous.

    Raises:
        UserError: if `check_weights`, and a value is not finite, or becomes infinite.
    """
    with np.errstate(over="ignore"):
        found = np.asarray(value, dtype, order="C")
    if check_weights and not all_finite(found):
        if not all_finite(value):
            raise UserError(
                f"tensor {name} has {share([value])} that are not finite (NaN or infinite); "
                "nothing was written"
            )
        raise beyond_range(None, name, [found])
    return found


def plan_tensors(
    cfg: ModelConfig, family: Family, dtypes: Mapping[str, str]
) -> dict[Tensor, tuple[Row, int]]:
    """The row and layer of each tensor, in the order of a file; `dtypes` is by tensor name."""
    plan = {
        Tensor(name, stored_shape(row, specs), dtypes[name]): (row, layer)
        for row, specs in rows_of(family, cfg, dtypes)
        for layer, name in enumerate(row.names(cfg.num_layers))
    }
    return {tensor: plan[tensor] for tensor in widest_first(plan)}


def stored_tensors(
    params: Params,
    cfg: ModelConfig,
    family: Family,
    dtype: DTypeLike | Mapping[str, str],
    *,
    check_weights: bool = True,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield parameters (or gradients) as Hugging Face tensors with their names.

    Args:
        dtype: one dtype for all tensors, or the safetensors dtype of each by its name.
        check_weights: refuse values that are not finite in `dtype`.

    Raises:
        UserError: naming the tensor with such values.
    """
    if not isinstance(dtype, Mapping):
        dtype = dict.fromkeys(tensor_names(family, cfg), dtype_name(dtype))
    by_path = flatten_dict(params)
    for tensor, (row, layer) in plan_tensors(cfg, family, dtype).items():
        leaves = [by_path[leaf] for leaf in row.leaves]
        value = row.to_stored([to_host(leaf[layer] if row.stacked else leaf) for leaf in leaves])
        found = cast(value, DTYPES[tensor.dtype], tensor.name, check_weights=check_weights)
        yield tensor.name, found


def as_stored(params: Params, cfg: ModelConfig, source: Path) -> Params:
    """The parameters as an export like `source` holds them, rounded to the dtype of each tensor."""
    _, family, _ = read_config(source)
    dtypes = stored_dtypes(source, family, cfg)
    found = dict(flatten_dict(params))
    for row, _ in rows_of(family, cfg, dtypes):
        kinds = [DTYPES[dtypes[name]] for name in row.names(cfg.num_layers)]
        for path in row.leaves:
            found[path] = rounded(found[path], kinds)
    return unflatten_dict(found)


def rounded(leaf: Array, dtypes: Sequence[np.dtype]) -> Array:
    """A leaf rounded to a dtype, or each of its layers to one; it keeps its own dtype."""
    if all(dtype.itemsize >= leaf.dtype.itemsize for dtype in dtypes):
        return leaf
    if len(set(dtypes)) == 1:
        return leaf.astype(dtypes[0]).astype(leaf.dtype)
    layers = [rounded(layer, [dtype]) for layer, dtype in zip(leaf, dtypes, strict=True)]
    return jnp.stack(layers)


def write_weights(
    directory: Path,
    params: Params,
    cfg: ModelConfig,
    family: Family,
    dtypes: Mapping[str, str],
    *,
    untouched: Sequence[StoredTensor] = (),
    file_bytes: int = FILE_BYTES,
    on_tensor: OnTensor = lambda done: None,
    check_weights: bool = True,
) -> None:
    """Write the safetensors files.

    Args:
        dtypes: the safetensors dtype of each tensor by its name.
        untouched: tensors to copy unchanged.
        check_weights: as in `stored_tensors`.
    """
    copied = {tensor.name: tensor for tensor in untouched}
    tensors = widest_first([*plan_tensors(cfg, family, dtypes), *untouched])

    def values() -> Iterator[np.ndarray]:
        ours = stored_tensors(params, cfg, family, dtypes, check_weights=check_weights)
        done = 0
        for tensor in tensors:
            if tensor.name in copied:
                yield copied[tensor.name].read()
                continue
            yield next(ours)[1]
            done += 1
            on_tensor(done)

    write_tensors(directory, tensors, values(), file_bytes)


def export_checkpoint(
    params: Params,
    cfg: ModelConfig,
    source: Path,
    destination: Path,
    dtype: DTypeLike | None = None,
    *,
    file_bytes: int = FILE_BYTES,
    on_tensor: OnTensor = lambda done: None,
    check_weights: bool = True,
    prompt: Mapping[str, str] | None = None,
    computed_in: str | None = None,
) -> None:
    """Write `params` as a Hugging Face directory like `source`, atomically.

    Configuration, tokenizer, chat templates and generation config are copied from `source`, and
    so are the weights of a multimodal model that are not the language model's. In a run of
    several processes all must call this; process 0 writes.

    Args:
        source: a Hugging Face directory or a native checkpoint.
        dtype: the dtype of all weights; None: the dtype of each tensor in `source`, so that a
            round trip is exact.
        check_weights: refuse weights that are not finite, or not in the dtype of the file.
        prompt: the content of the prompt file; None: a copy of that of `source`, if it has one.
        computed_in: what the model was measured in, for `compute_dtype`; None: as in `source`.

    Raises:
        UserError: if `destination` exists, `source` is a different model, or a weight is not
            finite.
    """
    _, family, source_cfg = read_config(source)
    if cfg != source_cfg:
        raise UserError(f"{source}/config.json: not the configuration of these parameters")
    dtypes = stored_dtypes(source, family, cfg, dtype)
    if is_first():
        with new_directory(destination) as directory:
            copy_files(source, directory, dtype, computed_in)
            if prompt is not None:
                write_object(directory / PROMPT_FILE, dict(prompt))
            write_weights(
                directory, params, cfg, family, dtypes,
                untouched=untouched_tensors(source, family), file_bytes=file_bytes,
                on_tensor=on_tensor, check_weights=check_weights,
            )  # fmt: skip
    else:
        for _ in stored_tensors(params, cfg, family, dtypes, check_weights=check_weights):
            pass  # sends this process's shards to process 0
    from_first(lambda: None)  # wait until process 0 has written


def weights_dtypes(directory: Path) -> str:
    """The dtypes in which a directory stores the language model's weights: "float32"."""
    _, family, cfg = read_config(directory)
    kinds = set(stored_dtypes(directory, family, cfg).values())
    return " and ".join(DTYPES[kind].name for kind in DTYPES if kind in kinds)


def write_checkpoint(
    params: Params,
    cfg: ModelConfig,
    destination: Path,
    *,
    tokenizer: Any = None,
    dtype: DTypeLike = "float32",
    config: Mapping[str, Any] | None = None,
    family: Family = LLAMA,
) -> None:
    """Write a Hugging Face directory for a model that was not loaded from one.

    Args:
        tokenizer: a transformers tokenizer to save with the weights.
        config: further keys of `config.json`, such as `max_position_embeddings`. The token
            ids among them also go to `generation_config.json`.

    Raises:
        UserError: if `destination` exists.
    """
    content = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.to_hf(cfg),
        "dtype": jnp.dtype(dtype).name,
        **(config or {}),
    }
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    with new_directory(destination) as directory:
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        write_object(directory / "config.json", content)
        found = {key: content[key] for key in ids if key in content}
        if found:
            write_object(directory / "generation_config.json", found)
        dtypes = dict.fromkeys(tensor_names(family, cfg), dtype_name(dtype))
        write_weights(directory, params, cfg, family, dtypes)
