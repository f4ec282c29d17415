"""Model families: how their configuration and their tensors map to ours.

A family is one table. Each row names a Hugging Face tensor and the leaf it becomes; `{}`
in a name stands for the layer's number. Linear layers store `[out, in]` matrices, leaves
hold `[in, out]` with heads as axes of their own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, RopeConfig
from pmc_jax.model.forward import ACTIVATIONS

HFConfig = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor and its leaf.

    Attributes:
        name: the tensor's name.
        leaf: path of the leaf in the parameters; below "layers" all layers are stacked.
        transposed: the stored matrix is the transpose of the (flattened) leaf.
        heads_in: a matrix whose input, not output, is split into heads.
    """

    name: str
    leaf: tuple[str, ...]
    transposed: bool = False
    heads_in: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{}" in self.name

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        split = len(shape) - 1 if self.heads_in else 1
        return int(np.prod(shape[:split])), int(np.prod(shape[split:]))

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, from the shape of one layer's leaf."""
        if self.transposed:
            return self._matrix(shape)[::-1]
        return shape if len(shape) < 2 or not self.stacked else (int(np.prod(shape)),)

    def to_leaf(self, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """One layer's leaf of `shape`, a view of the stored tensor."""
        return (stored.T if self.transposed else stored).reshape(shape)

    def to_stored(self, leaf: np.ndarray) -> np.ndarray:
        """The tensor that becomes this leaf."""
        if self.transposed:
            return np.ascontiguousarray(leaf.reshape(self._matrix(leaf.shape)).T)
        return leaf.reshape(self.stored_shape(leaf.shape))


@dataclasses.dataclass(frozen=True)
class Family:
    """A table of tensors and the mapping of the configuration both ways.

    `ignored` are endings of tensors that hold no weights.
    """

    architecture: str
    rows: tuple[Row, ...]
    from_hf: Callable[[HFConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    ignored: tuple[str, ...] = ()


def _llama_rows() -> tuple[Row, ...]:
    layer = "model.layers.{}."
    rows = [
        Row("model.embed_tokens.weight", ("embed",)),
        Row(layer + "input_layernorm.weight", ("layers", "attn_norm")),
        Row(layer + "post_attention_layernorm.weight", ("layers", "mlp_norm")),
        Row("model.norm.weight", ("final_norm",)),
        Row("lm_head.weight", ("lm_head",), transposed=True),
    ]
    linears = [(f"self_attn.{x}_proj", x) for x in "qkvo"]
    linears += [(f"mlp.{x}_proj", x) for x in ("gate", "up", "down")]
    for name, leaf in linears:
        matrix = Row(
            f"{layer}{name}.weight", ("layers", leaf), transposed=True, heads_in=leaf == "o"
        )
        rows += [matrix, Row(f"{layer}{name}.bias", ("layers", f"{leaf}_bias"))]
    return tuple(rows)


def _rope_from_hf(config: HFConfig) -> RopeConfig:
    """Rope settings in the new spelling (`rope_parameters`) or the old (`rope_scaling`)."""
    old = dict(config.get("rope_scaling") or {})
    settings = {"rope_theta": config.get("rope_theta", 10_000.0), **old}
    settings |= dict(config.get("rope_parameters") or {})
    kind = settings.get("rope_type") or settings.get("type") or "default"
    theta = float(settings["rope_theta"])
    if kind == "default":
        return RopeConfig(theta=theta)
    wanted = {
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    if kind not in wanted:
        raise UserError(
            f"config.json: rope type {kind!r} is not supported; expected default, "
            f"{' or '.join(wanted)}"
        )
    missing = [key for key in wanted[kind] if settings.get(key) is None]
    if missing:
        raise UserError(f"config.json: rope type {kind!r} needs {', '.join(missing)}")
    return RopeConfig(theta=theta, kind=kind, **{key: settings[key] for key in wanted[kind]})


def _llama_from_hf(config: HFConfig) -> ModelConfig:
    def positive(key: str, default: Any = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config.json: {key} is {value!r}; expected a positive integer")
        return value

    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act {activation!r} is not supported; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    heads, hidden = positive("num_attention_heads"), positive("hidden_size")
    kv_heads = positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads {heads} is no multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    head_dim = positive("head_dim", hidden // heads)
    if head_dim % 2:
        raise UserError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs pairs")
    return ModelConfig(
        vocab_size=positive("vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive("intermediate_size"),
        num_layers=positive("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=activation,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        rope=_rope_from_hf(config),
        initializer_range=float(config.get("initializer_range", 0.02)),
    )


def _llama_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": cfg.rope.theta, "rope_type": cfg.rope.kind}
    if cfg.rope.kind != "default":
        rope["factor"] = cfg.rope.factor
    if cfg.rope.kind == "llama3":
        rope["low_freq_factor"] = cfg.rope.low_freq_factor
        rope["high_freq_factor"] = cfg.rope.high_freq_factor
        rope["original_max_position_embeddings"] = cfg.rope.original_max_position_embeddings
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "rope_parameters": rope,
        "initializer_range": cfg.initializer_range,
    }


LLAMA = Family(
    architecture="LlamaForCausalLM",
    rows=_llama_rows(),
    from_hf=_llama_from_hf,
    to_hf=_llama_to_hf,
    ignored=(".rotary_emb.inv_freq",),
)

FAMILIES = {family.architecture: family for family in (LLAMA,)}


def family_of(config: HFConfig) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: naming an architecture that is not supported, or a quantised checkpoint.
    """
    architectures = config.get("architectures") or [config.get("model_type", "none named")]
    found = next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
    if found is None:
        raise UserError(
            f"config.json: architecture {', '.join(map(str, architectures))} is not supported; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError("config.json: a quantised checkpoint; expected float weights")
    return found


def present_rows(family: Family, leaves: Mapping[tuple[str, ...], Any]) -> list[Row]:
    """The rows whose leaf the model has."""
    return [row for row in family.rows if row.leaf in leaves]
