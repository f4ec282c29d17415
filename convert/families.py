"""Model families: how their configuration and their tensors map to ours.

A family is one table. Each row names a Hugging Face tensor and the leaf it becomes; `{}`
in a name stands for the layer's number. A new family is one more table, and one pair of
functions for `config.json`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
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


def optional(config: HFConfig, key: str, kind: type, default: Any) -> Any:
    """Like `value_of`, but a null stays None."""
    return None if key in config and config[key] is None else value_of(config, key, kind, default)


def without(config: HFConfig, *keys: str) -> dict[str, Any]:
    """`config` but for some keys, which the family does not read."""
    return {key: value for key, value in config.items() if key not in keys}


ROPE_FACTORS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Rope kinds and the numbers they need."""


def rope_from_hf(config: HFConfig, partial: float | None = None) -> RopeConfig:
    """Rope settings in the new spelling (`rope_parameters`) or the old (`rope_scaling`).

    The order of precedence is that of transformers' `convert_rope_params_to_dict`. `partial`
    is the share of rotated dimensions where the configuration has none; None: the family
    rotates all of them.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"config.json: rope settings are {settings!r}; expected an object")
    return rope_of(settings, config, partial)


def rope_of(
    settings: HFConfig, config: HFConfig, partial: float | None = None, theta: float = 1e4
) -> RopeConfig:
    """The rope that an object of settings describes; `config` has what they leave out."""
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ROPE_FACTORS:
        raise UserError(
            f"config.json: rope type {kind!r} is not supported; expected one of "
            f"{', '.join(ROPE_FACTORS)}"
        )
    theta = value_of(settings, "rope_theta", float, value_of(config, "rope_theta", float, theta))
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
    key = "partial_rotary_factor"
    share = value_of(settings, key, float, value_of(config, key, float, partial or 1.0))
    if share > 1 or (partial is None and share != 1):
        wanted = "1" if partial is None else "at most 1"
        raise UserError(f"config.json: {key} is {share:g}; expected {wanted}")
    return RopeConfig(theta=theta, kind=kind, partial=share, **found)


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The value of `rope_parameters`."""
    found = {"rope_theta": rope.theta, "rope_type": rope.kind}
    found |= {key: getattr(rope, key) for key in ROPE_FACTORS[rope.kind]}
    if rope.kind == "llama3":
        found["original_max_position_embeddings"] = rope.original_max_position_embeddings
    if rope.partial != 1:
        found["partial_rotary_factor"] = rope.partial
    return found


def activation_from_hf(config: HFConfig, key: str, default: str) -> str:
    """The name of the activation, one of `ACTIVATIONS`."""
    activation = config.get(key, default)
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config.json: {key} {activation!r} is not supported; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return activation


def sizes_from_hf(config: HFConfig, head_dim: int | None = None) -> dict[str, Any]:
    """Sizes, which have no defaults but for `head_dim`, and what all families spell alike."""
    heads = value_of(config, "num_attention_heads", int)
    hidden = value_of(config, "hidden_size", int)
    kv_heads = value_of(config, "num_key_value_heads", int, heads)
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads {heads} is no multiple of "
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


def llama_from_hf(config: HFConfig) -> ModelConfig:
    """Absent keys have the defaults of transformers' `LlamaConfig`, sizes have none."""
    bias = value_of(config, "attention_bias", bool, False)
    return ModelConfig(
        **sizes_from_hf(config),
        norm_eps=value_of(config, "rms_norm_eps", float, 1e-6),
        activation=activation_from_hf(config, "hidden_act", "silu"),
        tie_embeddings=value_of(config, "tie_word_embeddings", bool, False),
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=value_of(config, "mlp_bias", bool, False),
        rope=rope_from_hf(config),
    )


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


def llama_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `llama_from_hf`."""
    return {
        **sizes_to_hf(cfg),
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": cfg.activation,
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
        "rope_parameters": rope_to_hf(cfg.rope),
    }


def windows_from_hf(
    config: HFConfig, window: int | None, default: Sequence[bool]
) -> tuple[int, ...]:
    """Each layer's window, by `layer_types` or else by `default` (True: sliding); empty: none."""
    types = config.get("layer_types")
    if types is None:
        sliding = list(default)
    else:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(types, list) or len(types) != len(default) or set(types) - set(known):
            raise UserError(
                f"config.json: layer_types is {types!r}; expected, for each of {len(default)} "
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


def mistral_from_hf(config: HFConfig) -> ModelConfig:
    """Llama with one window for all layers."""
    window = optional(config, "sliding_window", int, 4096)
    cfg = llama_from_hf(without(config, "attention_bias", "mlp_bias"))
    return dataclasses.replace(cfg, windows=(window,) * cfg.num_layers if window else ())


def mistral_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `mistral_from_hf`."""
    common = without(llama_to_hf(cfg), "attention_bias", "mlp_bias")
    return {**common, "sliding_window": cfg.windows[0] if cfg.windows else None}


def qwen_windows(config: HFConfig, layers: int) -> tuple[int, ...]:
    """Windows, if `use_sliding_window`, of the layers from `max_window_layers` on."""
    if not value_of(config, "use_sliding_window", bool, False):
        return ()
    first = config.get("max_window_layers", 28)
    window = optional(config, "sliding_window", int, 4096)
    return windows_from_hf(config, window, [layer >= first for layer in range(layers)])


def qwen2_from_hf(config: HFConfig) -> ModelConfig:
    """Llama with biases on queries, keys and values."""
    cfg = llama_from_hf(without(config, "attention_bias", "mlp_bias"))
    windows = qwen_windows(config, cfg.num_layers)
    return dataclasses.replace(cfg, attention_bias=True, windows=windows)


def qwen2_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen2_from_hf`."""
    common = without(llama_to_hf(cfg), "attention_bias", "mlp_bias")
    return {**common, **windows_to_hf(cfg), "use_sliding_window": bool(cfg.windows)}


def qwen3_from_hf(config: HFConfig) -> ModelConfig:
    """Llama with normalised queries and keys."""
    cfg = llama_from_hf({"head_dim": 128, **without(config, "mlp_bias")})
    return dataclasses.replace(cfg, qk_norm=True, windows=qwen_windows(config, cfg.num_layers))


def qwen3_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_from_hf`."""
    common = without(llama_to_hf(cfg), "mlp_bias")
    return {**common, **windows_to_hf(cfg), "use_sliding_window": bool(cfg.windows)}


def phi_from_hf(config: HFConfig) -> ModelConfig:
    """One layer norm before attention and MLP side by side, biases everywhere."""
    if value_of(config, "qk_layernorm", bool, False):
        raise UserError("config.json: qk_layernorm is true; expected false")
    return ModelConfig(
        **sizes_from_hf(config),
        norm="layer",
        norm_eps=value_of(config, "layer_norm_eps", float, 1e-5),
        parallel_block=True,
        gated_mlp=False,
        activation=activation_from_hf(config, "hidden_act", "gelu_new"),
        tie_embeddings=value_of(config, "tie_word_embeddings", bool, False),
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        head_bias=True,
        rope=rope_from_hf(config, partial=0.5),
    )


def phi_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `phi_from_hf`."""
    return {
        **without(sizes_to_hf(cfg), "head_dim"),
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": cfg.activation,
        "qk_layernorm": False,
        "rope_parameters": {"partial_rotary_factor": 1.0, **rope_to_hf(cfg.rope)},
    }


def gemma2_from_hf(config: HFConfig) -> ModelConfig:
    """Sandwich norms of 1 + w, scaled embeddings, soft-caps, every other layer local."""
    if config.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention is set; expected null or false")
    sizes = sizes_from_hf(config, head_dim=256)
    bias = value_of(config, "attention_bias", bool, False)
    window = optional(config, "sliding_window", int, 4096)
    return ModelConfig(
        **sizes,
        norm="rms_plus_one",
        norm_eps=value_of(config, "rms_norm_eps", float, 1e-6),
        post_norms=True,
        activation=activation_from_hf(config, "hidden_activation", "gelu_pytorch_tanh"),
        tie_embeddings=value_of(config, "tie_word_embeddings", bool, True),
        attention_bias=bias,
        attention_out_bias=bias,
        attention_scale=value_of(config, "query_pre_attn_scalar", float, 256.0) ** -0.5,
        attention_softcap=optional(config, "attn_logit_softcapping", float, 50.0),
        logit_softcap=optional(config, "final_logit_softcapping", float, 30.0),
        embedding_scale=sizes["hidden_size"] ** 0.5,
        windows=windows_from_hf(
            config, window, [layer % 2 == 0 for layer in range(sizes["num_layers"])]
        ),
        rope=rope_from_hf(config),
    )


def gemma2_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma2_from_hf`."""
    scale = cfg.head_dim**-0.5 if cfg.attention_scale is None else cfg.attention_scale
    return {
        **sizes_to_hf(cfg),
        **windows_to_hf(cfg),
        "rms_norm_eps": cfg.norm_eps,
        "hidden_activation": cfg.activation,
        "attention_bias": cfg.attention_bias,
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": cfg.attention_softcap,
        "final_logit_softcapping": cfg.logit_softcap,
        "rope_parameters": rope_to_hf(cfg.rope),
    }


def gemma3_from_hf(config: HFConfig) -> ModelConfig:
    """Gemma 2 with normalised queries and keys, five local layers to a global one, two ropes."""
    uncapped = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    cfg = gemma2_from_hf(
        {**uncapped, **without(config, "layer_types", "rope_parameters", "rope_scaling")}
    )
    pattern = value_of(config, "sliding_window_pattern", int, 6)
    window = optional(config, "sliding_window", int, 4096)
    default = [(layer + 1) % pattern != 0 for layer in range(cfg.num_layers)]
    kinds = config.get("rope_parameters") or {}
    if not isinstance(kinds, Mapping):
        raise UserError(f"config.json: rope_parameters is {kinds!r}; expected an object")
    everywhere = {**(kinds.get("full_attention") or {}), **(config.get("rope_scaling") or {})}
    local_theta = value_of(config, "rope_local_base_freq", float, 1e4)
    return dataclasses.replace(
        cfg,
        qk_norm=True,
        windows=windows_from_hf(config, window, default),
        rope=rope_of(everywhere, config, theta=1e6),
        local_rope=rope_of(kinds.get("sliding_attention") or {}, {"rope_theta": local_theta}),
    )


def gemma3_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma3_from_hf`."""
    return {
        **gemma2_to_hf(cfg),
        "rope_parameters": {
            "full_attention": rope_to_hf(cfg.rope),
            "sliding_attention": rope_to_hf(cfg.local_rope or cfg.rope),
        },
    }


LAYER = "model.layers.{}."


def linear_rows(projections: Mapping[str, str]) -> tuple[Row, ...]:
    """Projections `[out, in]` and their biases, with heads as axes of their own in the leaf.

    `projections` has, for each leaf, the module's name within a layer.
    """
    rows = []
    for leaf, name in projections.items():
        inputs = 2 if leaf == "o" else 1
        rows.append(Row(f"{LAYER}{name}.weight", ("layers", leaf), inputs=inputs))
        rows.append(Row(f"{LAYER}{name}.bias", ("layers", f"{leaf}_bias"), flat=True))
    return tuple(rows)


def norm_rows(norms: Mapping[str, str]) -> tuple[Row, ...]:
    """Norm weights and biases; `norms` has, for each leaf, the module's name within a layer."""
    rows = []
    for leaf, name in norms.items():
        rows.append(Row(f"{LAYER}{name}.weight", ("layers", leaf)))
        rows.append(Row(f"{LAYER}{name}.bias", ("layers", f"{leaf}_bias")))
    return tuple(rows)


HEAD = (
    Row("lm_head.weight", ("lm_head",), inputs=1),
    Row("lm_head.bias", ("lm_head_bias",)),
)
EMBED = Row("model.embed_tokens.weight", ("embed",))
FINAL_NORM = Row("model.norm.weight", ("final_norm",))
PROJECTIONS = {x: f"self_attn.{x}_proj" for x in "qkvo"}
PROJECTIONS |= {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}
NORMS = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
LLAMA_ROWS = (EMBED, *norm_rows(NORMS), FINAL_NORM, *HEAD, *linear_rows(PROJECTIONS))
GEMMA_NORMS = {
    **NORMS,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
GEMMA_ROWS = (EMBED, *norm_rows(GEMMA_NORMS), FINAL_NORM, *HEAD, *linear_rows(PROJECTIONS))
PHI_PROJECTIONS = {
    **{x: f"self_attn.{x}_proj" for x in "qkv"},
    "o": "self_attn.dense",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
PHI_ROWS = (
    EMBED,
    *norm_rows({"attn_norm": "input_layernorm"}),
    Row("model.final_layernorm.weight", ("final_norm",)),
    Row("model.final_layernorm.bias", ("final_norm_bias",)),
    *HEAD,
    *linear_rows(PHI_PROJECTIONS),
)
TIED = ("lm_head.weight", "model.embed_tokens.weight")
IGNORED = (".rotary_emb.inv_freq",)


def family(
    architecture: str,
    model_type: str,
    rows: tuple[Row, ...],
    from_hf: Callable[[HFConfig], ModelConfig],
    to_hf: Callable[[ModelConfig], dict[str, Any]],
) -> Family:
    """A family whose head and buffers are called as everywhere."""
    return Family(architecture, model_type, rows, from_hf, to_hf, TIED, IGNORED)


LLAMA = family("LlamaForCausalLM", "llama", LLAMA_ROWS, llama_from_hf, llama_to_hf)

FAMILIES = (
    LLAMA,
    family("PhiForCausalLM", "phi", PHI_ROWS, phi_from_hf, phi_to_hf),
    family("Gemma3ForCausalLM", "gemma3_text", GEMMA_ROWS, gemma3_from_hf, gemma3_to_hf),
    family("Qwen2ForCausalLM", "qwen2", LLAMA_ROWS, qwen2_from_hf, qwen2_to_hf),
    family("Qwen3ForCausalLM", "qwen3", LLAMA_ROWS, qwen3_from_hf, qwen3_to_hf),
    family("MistralForCausalLM", "mistral", LLAMA_ROWS, mistral_from_hf, mistral_to_hf),
    family("Gemma2ForCausalLM", "gemma2", GEMMA_ROWS, gemma2_from_hf, gemma2_to_hf),
)
