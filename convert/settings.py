"""Reading and writing the settings of `config.json` that several families share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig
from pmc_jax.model.forward import ACTIVATIONS
from pmc_jax.terminal import short

HFConfig = Mapping[str, Any]


LARGEST = {int: 2**31 - 1, float: 3.4e38}
"""What fits into the int32 and float32 that models are computed with."""

LARGEST_OF = {
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "vocab_size": 2**24,
    "rms_norm_eps": 1,
    "layer_norm_eps": 1,
}
"""Far more than any model has: a file that asks for more is broken."""


def value_of(config: HFConfig, key: str, kind: type, default: Any = None) -> Any:
    """`config[key]`, or `default` if it is absent or null; `kind` is int, float or bool.

    Raises:
        UserError: if it is missing and has no default, has another type, or is a number that
            is not positive, or too large.
    """
    value = config.get(key)
    value = default if value is None else value
    if kind is bool and isinstance(value, bool):
        return value
    most = LARGEST_OF.get(key, LARGEST.get(kind))
    if kind is not bool and is_positive(value, kind, most):
        return kind(value)
    wanted = {int: "a positive integer", float: "a positive number", bool: "true or false"}[kind]
    if kind is not bool and is_positive(value, kind):
        wanted += f" of at most {most:g}" if kind is float else f" of at most {most}"
    raise UserError(f"config.json: {key} is {shown(value)}; expected {wanted}")


def is_positive(value: Any, kind: type, most: float | None = None) -> bool:
    """Whether a value is a positive finite number, an integer if `kind` is int."""
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        return False
    number: float = value
    return 0 < number < math.inf and (most is None or number <= most)


def shown(value: Any) -> str:
    """A value for an error, cut if it is long."""
    return "missing" if value is None else short(repr(value))


def object_of(config: HFConfig, key: str) -> HFConfig:
    """`config[key]`, an object; an absent, null or empty one is {}.

    Raises:
        UserError: if it is something else.
    """
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"config.json: {key} is {shown(value)}; expected an object")
    return value


def optional(config: HFConfig, key: str, kind: type, default: Any) -> Any:
    """Like `value_of`, but null is read as None."""
    return None if key in config and config[key] is None else value_of(config, key, kind, default)


def without(config: HFConfig, *keys: str) -> dict[str, Any]:
    """`config` without some keys, which the family does not read."""
    return {key: value for key, value in config.items() if key not in keys}


ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}
"""The numbers that each rope kind needs."""

ROPE_ALIASES = {"su": "longrope"}
"""The name in the first Phi-3 checkpoints."""


def rope_from_hf(config: HFConfig, partial: float | None = None) -> RopeConfig:
    """The rope, from the key `rope_parameters` or, in older files, `rope_scaling`.

    The precedence is that of transformers' `convert_rope_params_to_dict`.

    Args:
        partial: the default share of rotated dimensions; None: the family always rotates all.
    """
    settings = object_of(config, "rope_scaling") or object_of(config, "rope_parameters")
    return rope_of(settings, config, partial)


def rope_of(
    settings: HFConfig, config: HFConfig, partial: float | None = None, theta: float = 1e4
) -> RopeConfig:
    """The rope that `settings` describe, with defaults from `config`."""
    kind = named = settings.get("rope_type") or settings.get("type") or "default"
    kind = ROPE_ALIASES.get(kind, kind) if isinstance(kind, str) else None
    if kind not in ROPE_NUMBERS:
        raise UserError(
            f"config.json: rope type {shown(named)} is not supported; expected one of "
            f"{', '.join(ROPE_NUMBERS)}"
        )
    theta = value_of(settings, "rope_theta", float, value_of(config, "rope_theta", float, theta))
    found: dict[str, Any] = {key: value_of(settings, key, float) for key in ROPE_NUMBERS[kind]}
    key = "partial_rotary_factor"
    share = value_of(settings, key, float, value_of(config, key, float, partial or 1.0))
    if share > 1 or (partial is None and share != 1):
        wanted = "1" if partial is None else "at most 1"
        raise UserError(f"config.json: {key} is {share:g}; expected {wanted}")
    if kind in ("llama3", "longrope"):
        key = "original_max_position_embeddings"
        fallback = value_of(config, "max_position_embeddings", int, 2048)
        found[key] = value_of(config, key, int, value_of(settings, key, int, fallback))
    if kind == "llama3":
        low, high = found["low_freq_factor"], found["high_freq_factor"]
        if low >= high:
            raise UserError(
                f"config.json: low_freq_factor {low} is not below high_freq_factor {high}"
            )
    if kind == "longrope":
        rotated = int(sizes_from_hf(config)["head_dim"] * share)
        found |= longrope_factors(settings, config, found[key], rotated // 2)
    return RopeConfig(theta=theta, kind=kind, partial=share, **found)


def longrope_factors(
    settings: HFConfig, config: HFConfig, original: int, pairs: int
) -> dict[str, Any]:
    """LongRoPE's divisors of each pair's frequency, and the factor of cosines and sines.

    The factor is sqrt(1 + ln(s) / ln(original)) for a context s times the original one (Ding et
    al. 2024), unless the configuration gives it.
    """
    found: dict[str, Any] = {}
    for key in ("short_factor", "long_factor"):
        values = settings.get(key)
        if (
            not isinstance(values, list | tuple)
            or len(values) != pairs
            or not all(is_positive(x, float, LARGEST[float]) for x in values)
        ):
            raise UserError(
                f"config.json: {key} is {shown(values)}; expected a list of {pairs} positive "
                "numbers"
            )
        found[key] = tuple(float(x) for x in values)
    longest = value_of(config, "max_position_embeddings", int, 4096)
    scale = value_of(settings, "factor", float, longest / original)
    stretched = scale > 1 and original > 1
    scaling = math.sqrt(1 + math.log(scale) / math.log(original)) if stretched else 1.0
    return {**found, "attention_factor": value_of(settings, "attention_factor", float, scaling)}


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The value of `rope_parameters`."""
    found: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.kind}
    found |= {key: getattr(rope, key) for key in ROPE_NUMBERS[rope.kind]}
    if rope.kind in ("llama3", "longrope"):
        found["original_max_position_embeddings"] = rope.original_max_position_embeddings
    if rope.kind == "longrope":
        found |= {key: list(getattr(rope, key)) for key in ("short_factor", "long_factor")}
        found["attention_factor"] = rope.attention_factor
    if rope.partial != 1:
        found["partial_rotary_factor"] = rope.partial
    return found


def activation_from_hf(config: HFConfig, key: str, default: str) -> str:
    """The name of the activation, one of `ACTIVATIONS`."""
    activation = config.get(key, default)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"config.json: {key} {shown(activation)} is not supported; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return activation


def sizes_from_hf(config: HFConfig, head_dim: int | None = None) -> dict[str, Any]:
    """The sizes, of which only `head_dim` has a default, and other keys that all families share."""
    heads = value_of(config, "num_attention_heads", int)
    hidden = value_of(config, "hidden_size", int)
    kv_heads = value_of(config, "num_key_value_heads", int, heads)
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    head_dim = value_of(config, "head_dim", int, head_dim or hidden // heads)
    if head_dim % 2:
        raise UserError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs pairs")
    return {
        "vocab_size": value_of(config, "vocab_size", int),
        "hidden_size": hidden,
        "intermediate_size": value_of(config, "intermediate_size", int),
        "num_layers": value_of(config, "num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "initializer_range": value_of(config, "initializer_range", float, 0.02),
    }


def sizes_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `sizes_from_hf`."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "initializer_range": cfg.initializer_range,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


def windows_from_hf(
    config: HFConfig, window: int | None, default: Sequence[bool]
) -> tuple[int, ...]:
    """The window of each layer, 0 for full attention; () if no layer has one.

    Args:
        default: which layers have the window if `layer_types` is absent.
    """
    types = config.get("layer_types")
    if types is None:
        sliding = list(default)
    else:
        known = {"sliding_attention": True, "full_attention": False}
        fits = isinstance(types, list) and len(types) == len(default)
        if not fits or not all(isinstance(name, str) and name in known for name in types):
            raise UserError(
                f"config.json: layer_types is {shown(types)}; expected, for each of {len(default)} "
                f"layers, {' or '.join(known)}"
            )
        sliding = [known[name] for name in types]
    if window is None or not any(sliding):
        return ()
    return tuple(window if slides else 0 for slides in sliding)


def windows_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types`."""
    windows = cfg.windows or (0,) * cfg.num_layers
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"sliding_window": max(windows) or None, "layer_types": types}
