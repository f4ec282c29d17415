"""The decoder: configuration, weight table, forward pass, KV cache."""

from pmc_jax.model.attention import Segments
from pmc_jax.model.cache import (
    PrefixCache,
    SuffixCache,
    grow,
    init_suffix,
    replaced,
    squeeze_single,
    unsqueeze_single,
)
from pmc_jax.model.config import ModelConfig, RopeConfig
from pmc_jax.model.forward import (
    decode_step,
    forward,
    layer_states,
    logits,
    prefill,
)
from pmc_jax.model.gradients import gradient_slots, routed
from pmc_jax.model.nll import negative_log_likelihood, token_nll, token_values
from pmc_jax.model.sharding import (
    MESH_AXES,
    auto_layout,
    batch_shards,
    choose_mesh,
    constrain,
    constrain_params,
    make_mesh,
    mesh_layout,
    on_mesh,
    param_shardings,
    shardings_of,
    to_devices,
    to_host,
)
from pmc_jax.model.specs import (
    Spec,
    abstract_params,
    decay_mask,
    init_params,
    param_count,
    param_specs,
)
from pmc_jax.model.stacks import (
    decoding_params,
    layer_stacks,
    map_stacks,
    parts_of,
    stacked,
)

__all__ = [
    "MESH_AXES",
    "ModelConfig",
    "PrefixCache",
    "RopeConfig",
    "Segments",
    "Spec",
    "SuffixCache",
    "abstract_params",
    "auto_layout",
    "batch_shards",
    "choose_mesh",
    "constrain",
    "constrain_params",
    "decay_mask",
    "decode_step",
    "decoding_params",
    "forward",
    "gradient_slots",
    "grow",
    "init_params",
    "init_suffix",
    "layer_stacks",
    "layer_states",
    "logits",
    "make_mesh",
    "map_stacks",
    "mesh_layout",
    "negative_log_likelihood",
    "on_mesh",
    "param_count",
    "param_shardings",
    "param_specs",
    "parts_of",
    "prefill",
    "replaced",
    "routed",
    "shardings_of",
    "squeeze_single",
    "stacked",
    "to_devices",
    "to_host",
    "token_nll",
    "token_values",
    "unsqueeze_single",
]
