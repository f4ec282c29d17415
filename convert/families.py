"""Model families: how a Hugging Face configuration and tensors map to this package's.

A family is a table, whose rows name a Hugging Face tensor and its parameter leaves, and two
functions that convert `config.json` to a `ModelConfig` and back.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from convert.rows import Row, in_layer, linear_rows, norm_rows, renamed, whole
from convert.settings import (
    HFConfig,
    activation_from_hf,
    object_of,
    optional,
    rope_from_hf,
    rope_of,
    rope_to_hf,
    shown,
    sizes_from_hf,
    sizes_to_hf,
    value_of,
    windows_from_hf,
    windows_to_hf,
    without,
)
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig
from pmc_jax.terminal import short


@dataclasses.dataclass(frozen=True)
class Family:
    """A table of tensors, and the conversion of the configuration.

    Attributes:
        architecture, model_type: the family's names in `config.json`.
        rows: the table; rows for leaves that a configuration does not have are ignored.
        from_hf, to_hf: `config.json` to a model configuration, and back.
        other_rows: the same table for checkpoints with other tensor names.
        untouched: prefixes of tensors that are not the language model's; an export copies
            them unchanged.
    """

    architecture: str
    model_type: str
    rows: tuple[Row, ...]
    from_hf: Callable[[HFConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    other_rows: tuple[Row, ...] = ()
    untouched: tuple[str, ...] = ()

    def table(self, names: Iterable[str]) -> tuple[Row, ...]:
        """The rows that match a checkpoint with tensors of these `names`."""
        embedding = row_of(self.other_rows, "embed")
        return self.other_rows if embedding and embedding.name in names else self.rows


def row_of(rows: Iterable[Row], leaf: str) -> Row | None:
    """The row of a leaf outside the layers."""
    return next((row for row in rows if row.leaves == ((leaf,),)), None)


IGNORED = (".rotary_emb.inv_freq",)
"""Suffixes of tensors that are not weights."""


def family_of(config: HFConfig) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: if the architecture is not supported, or the checkpoint is quantised.
    """
    named = config.get("architectures")
    if named:
        found = next((f for f in FAMILIES if named == [f.architecture]), None)
    else:
        named = config.get("model_type")
        found = next((f for f in FAMILIES if named == f.model_type), None)
    if found is None:
        raise UserError(
            f"config.json: architecture {short(named)} is not supported; expected one of "
            f"{', '.join(f.architecture for f in FAMILIES)}"
        )
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"config.json: a quantised checkpoint ({short(method)}) is not supported; expected "
            "float32, float16 or bfloat16 weights"
        )
    return found


def llama_from_hf(config: HFConfig) -> ModelConfig:
    """Absent keys have the defaults of transformers' `LlamaConfig`; sizes must be given."""
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
    """With `use_sliding_window`, layers from `max_window_layers` on have a window."""
    if not value_of(config, "use_sliding_window", bool, False):
        return ()
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise UserError(
            f"config.json: max_window_layers is {shown(first)}; expected the number of a layer"
        )
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
    """Attention and MLP in parallel after one layer norm, with biases everywhere."""
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
    """Sandwich norms with weights 1 + w, scaled embeddings, soft-caps, every other layer local."""
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
    """Gemma 2 with normalised queries and keys, five local layers per global one, and two ropes.

    As in transformers, attention scores have no soft-cap, whatever the configuration says.
    """
    read_below = ("layer_types", "rope_parameters", "rope_scaling", "attn_logit_softcapping")
    capped = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    cfg = gemma2_from_hf({**capped, **without(config, *read_below)})
    pattern = value_of(config, "sliding_window_pattern", int, 6)
    window = optional(config, "sliding_window", int, 4096)
    default = [(layer + 1) % pattern != 0 for layer in range(cfg.num_layers)]
    kinds = object_of(config, "rope_parameters")
    everywhere = {**object_of(kinds, "full_attention"), **object_of(config, "rope_scaling")}
    local_theta = value_of(config, "rope_local_base_freq", float, 1e4)
    return dataclasses.replace(
        cfg,
        qk_norm=True,
        windows=windows_from_hf(config, window, default),
        rope=rope_of(everywhere, config, theta=1e6),
        local_rope=rope_of(object_of(kinds, "sliding_attention"), {"rope_theta": local_theta}),
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


GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""Defaults of transformers' `Gemma3TextConfig`, on which published multimodal models rely."""


def gemma3_multimodal_from_hf(config: HFConfig) -> ModelConfig:
    """The language model of a multimodal checkpoint."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError(f"config.json: text_config is {shown(text)}; expected an object")
    return gemma3_from_hf({**GEMMA3_DEFAULTS, **text})


def gemma3_multimodal_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma3_multimodal_from_hf`."""
    return {"text_config": gemma3_to_hf(cfg), "tie_word_embeddings": cfg.tie_embeddings}


def phi3_from_hf(config: HFConfig) -> ModelConfig:
    """Llama with fused projections, an optional window, and LongRoPE."""
    read_below = ("rope_scaling", "rope_parameters", "partial_rotary_factor")
    cfg = llama_from_hf(without(config, "attention_bias", "mlp_bias", *read_below))
    window = optional(config, "sliding_window", int, None)
    return dataclasses.replace(
        cfg,
        norm_eps=value_of(config, "rms_norm_eps", float, 1e-5),
        windows=(window,) * cfg.num_layers if window else (),
        rope=rope_from_hf({"original_max_position_embeddings": 4096, **config}, partial=1.0),
    )


def phi3_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The inverse of `phi3_from_hf`."""
    common = without(llama_to_hf(cfg), "attention_bias", "mlp_bias")
    return {
        **common,
        "sliding_window": cfg.windows[0] if cfg.windows else None,
        "original_max_position_embeddings": cfg.rope.original_max_position_embeddings,
    }


EMBED = whole("model.embed_tokens.weight", "embed")
FINAL_NORM = whole("model.norm.weight", "final_norm")
HEAD = (whole("lm_head.weight", "lm_head", inputs=1), whole("lm_head.bias", "lm_head_bias"))
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
    whole("model.final_layernorm.weight", "final_norm"),
    whole("model.final_layernorm.bias", "final_norm_bias"),
    *HEAD,
    *linear_rows(PHI_PROJECTIONS),
)
PHI3_ROWS = (
    EMBED,
    *norm_rows(NORMS),
    FINAL_NORM,
    *HEAD,
    in_layer("self_attn.qkv_proj.weight", "q", "k", "v", inputs=1),
    in_layer("self_attn.o_proj.weight", "o", inputs=2),
    in_layer("mlp.gate_up_proj.weight", "gate", "up", inputs=1),
    in_layer("mlp.down_proj.weight", "down", inputs=1),
)
VISION = ("vision_tower.", "multi_modal_projector.")

LLAMA = Family("LlamaForCausalLM", "llama", LLAMA_ROWS, llama_from_hf, llama_to_hf)

FAMILIES = (
    LLAMA,
    Family("PhiForCausalLM", "phi", PHI_ROWS, phi_from_hf, phi_to_hf),
    Family("Gemma3ForCausalLM", "gemma3_text", GEMMA_ROWS, gemma3_from_hf, gemma3_to_hf),
    Family(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        # Names as on the hub; below, those of transformers since 4.52.
        renamed(GEMMA_ROWS, {"": "language_model."}),
        gemma3_multimodal_from_hf,
        gemma3_multimodal_to_hf,
        other_rows=renamed(GEMMA_ROWS, {"model.": "model.language_model."}),
        untouched=(*VISION, *(f"model.{part}" for part in VISION)),
    ),
    Family("Qwen2ForCausalLM", "qwen2", LLAMA_ROWS, qwen2_from_hf, qwen2_to_hf),
    Family("Qwen3ForCausalLM", "qwen3", LLAMA_ROWS, qwen3_from_hf, qwen3_to_hf),
    Family("MistralForCausalLM", "mistral", LLAMA_ROWS, mistral_from_hf, mistral_to_hf),
    Family("Gemma2ForCausalLM", "gemma2", GEMMA_ROWS, gemma2_from_hf, gemma2_to_hf),
    Family("Phi3ForCausalLM", "phi3", PHI3_ROWS, phi3_from_hf, phi3_to_hf),
)
