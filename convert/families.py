"""Model families: how their configuration and their tensors map to ours.

A family is one table. Each row names a Hugging Face tensor and the leaf it becomes; `{}`
in a name stands for the layer's number. A new family is one more table, and one pair of
functions for `config.json`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig
from pmc_jax.model.forward import ACTIVATIONS

HFConfig = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor and its leaf.

    Attributes:
        name: the tensor's name.
        leaf: path of the leaf in the parameters; below "layers" all layers are stacked.
        inputs: for a linear layer, how many of the leaf's leading axes are inputs. The
            tensor is then the `[out, in]` matrix of the leaf. 0: no linear layer.
        flat: the tensor is the leaf's values as one vector.
    """

    name: str
    leaf: tuple[str, ...]
    inputs: int = 0
    flat: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """The row's tensors, in the order of the layers."""
        return [self.name.format(i) for i in range(layers)] if self.stacked else [self.name]

    def stored_shape(self, shape: Shape) -> Shape:
        """The tensor's shape, from the shape of (one layer of) the leaf."""
        if self.inputs:
            return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])
        return (math.prod(shape),) if self.flat else shape

    def to_leaf(self, stored: np.ndarray, shape: Shape) -> np.ndarray:
        """(One layer of) the leaf of `shape`, a view of the tensor."""
        return (stored.T if self.inputs else stored).reshape(shape)

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """The tensor that becomes this (layer of the) leaf, as a view."""
        shape = self.stored_shape(leaf.shape)
        return leaf.reshape(shape[::-1]).T if self.inputs else leaf.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Family:
    """A table of tensors, and the configuration both ways.

    Attributes:
        architecture, model_type: what `config.json` calls the family.
        rows: the table; rows whose leaf a configuration lacks do not count.
        from_hf, to_hf: `config.json` to our configuration, and back.
        tied: tensor and its original. With tied embeddings a checkpoint may hold the
            first beside the second, if it is equal.
        ignored: endings of tensors that hold no weights.
    """

    architecture: str
    model_type: str
    rows: tuple[Row, ...]
    from_hf: Callable[[HFConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    tied: tuple[str, str]
    ignored: tuple[str, ...] = ()


def family_of(config: HFConfig) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: naming an architecture that is not supported, or a quantised checkpoint.
    """
    named = config.get("architectures")
    if named:
        found = next((f for f in FAMILIES if named == [f.architecture]), None)
    else:
        named = config.get("model_type")
        found = next((f for f in FAMILIES if named == f.model_type), None)
    if found is None:
        raise UserError(
            f"config.json: architecture {named} is not supported; expected one of "
            f"{', '.join(f.architecture for f in FAMILIES)}"
        )
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"config.json: a quantised checkpoint ({method}) is not supported; expected "
            "float32, float16 or bfloat16 weights"
        )
    return found


def value_of(config: HFConfig, key: str, kind: type, default: Any = None) -> Any:
    """`config[key]`, or `default` where it is absent or null; `kind` is int, float or bool.

    Raises:
        UserError: if it is missing without a default, of another type, or a number that
            is not positive.
    """
    value = config.get(key)
    value = default if value is None else value
    accepted = (int, float) if kind is float else kind
    number_like = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    if not number_like or (kind is not bool and not 0 < value < math.inf):
        wanted = {int: "a positive integer", float: "a positive number", bool: "true or false"}
        found = "missing" if value is None else f"{value!r}"
        raise UserError(f"config.json: {key} is {found}; expected {wanted[kind]}")
    return kind(value)


ROPE_FACTORS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Rope kinds and the numbers they need."""


def rope_from_hf(config: HFConfig) -> RopeConfig:
    """Rope settings in the new spelling (`rope_parameters`) or the old (`rope_scaling`).

    The order of precedence is that of transformers' `convert_rope_params_to_dict`.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"config.json: rope settings are {settings!r}; expected an object")
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ROPE_FACTORS:
        raise UserError(
            f"config.json: rope type {kind!r} is not supported; expected one of "
            f"{', '.join(ROPE_FACTORS)}"
        )
    for place in (settings, config):
        if place.get("partial_rotary_factor") not in (None, 1.0):
            raise UserError("config.json: partial_rotary_factor is not supported; expected 1")
    theta = value_of(settings, "rope_theta", float, value_of(config, "rope_theta", float, 1e4))
    found = {key: value_of(settings, key, float) for key in ROPE_FACTORS[kind]}
    if kind == "llama3":
        key = "original_max_position_embeddings"
        fallback = value_of(config, "max_position_embeddings", int, 2048)
        found[key] = value_of(config, key, int, value_of(settings, key, int, fallback))
        low, high = found["low_freq_factor"], found["high_freq_factor"]
        if low >= high:
            raise UserError(
                f"config.json: low_freq_factor {low} is not below high_freq_factor {high}"
            )
    return RopeConfig(theta=theta, kind=kind, **found)


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The value of `rope_parameters`."""
    found = {"rope_theta": rope.theta, "rope_type": rope.kind}
    found |= {key: getattr(rope, key) for key in ROPE_FACTORS[rope.kind]}
    if rope.kind == "llama3":
        found["original_max_position_embeddings"] = rope.original_max_position_embeddings
    return found


def activation_from_hf(config: HFConfig) -> str:
    """The name of the activation, one of `ACTIVATIONS`."""
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act {activation!r} is not supported; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return activation


def llama_from_hf(config: HFConfig) -> ModelConfig:
    """Absent keys have the defaults of transformers' `LlamaConfig`, sizes have none."""
    heads = value_of(config, "num_attention_heads", int)
    hidden = value_of(config, "hidden_size", int)
    kv_heads = value_of(config, "num_key_value_heads", int, heads)
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads {heads} is no multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    head_dim = value_of(config, "head_dim", int, hidden // heads)
    if head_dim % 2:
        raise UserError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs pairs")
    return ModelConfig(
        vocab_size=value_of(config, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=value_of(config, "intermediate_size", int),
        num_layers=value_of(config, "num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=value_of(config, "rms_norm_eps", float, 1e-6),
        activation=activation_from_hf(config),
        tie_embeddings=value_of(config, "tie_word_embeddings", bool, False),
        attention_bias=value_of(config, "attention_bias", bool, False),
        mlp_bias=value_of(config, "mlp_bias", bool, False),
        rope=rope_from_hf(config),
        initializer_range=value_of(config, "initializer_range", float, 0.02),
    )


def llama_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `llama_from_hf`."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": cfg.activation,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
        "rope_parameters": rope_to_hf(cfg.rope),
        "initializer_range": cfg.initializer_range,
    }


def llama_rows() -> tuple[Row, ...]:
    """The table: projections `[out, in]`, with heads as axes of their own in the leaf."""
    layer = "model.layers.{}."
    rows = [
        Row("model.embed_tokens.weight", ("embed",)),
        Row(layer + "input_layernorm.weight", ("layers", "attn_norm")),
        Row(layer + "post_attention_layernorm.weight", ("layers", "mlp_norm")),
        Row("model.norm.weight", ("final_norm",)),
        Row("lm_head.weight", ("lm_head",), inputs=1),
    ]
    projections = [(f"self_attn.{x}_proj", x) for x in "qkvo"]
    projections += [(f"mlp.{x}_proj", x) for x in ("gate", "up", "down")]
    for name, leaf in projections:
        inputs = 2 if leaf == "o" else 1
        rows.append(Row(f"{layer}{name}.weight", ("layers", leaf), inputs=inputs))
        rows.append(Row(f"{layer}{name}.bias", ("layers", f"{leaf}_bias"), flat=True))
    return tuple(rows)


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    rows=llama_rows(),
    from_hf=llama_from_hf,
    to_hf=llama_to_hf,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    ignored=(".rotary_emb.inv_freq",),
)

FAMILIES = (LLAMA,)
