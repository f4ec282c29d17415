"""Shape and switches of a decoder; hashable, so that it can be a static argument."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its context extensions.

    `kind` is "default", "linear" (positions divided by `factor`), "llama3" (low frequencies
    divided by `factor`, high ones kept, a smooth ramp between) or "longrope" (each pair's
    frequency divided by its `short_factor`, or by its `long_factor` in sequences longer than
    `original_max_position_embeddings`; cosines and sines times `attention_factor`).
    `partial` is the share of each head's dimensions that is rotated, the first ones.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    partial: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; the defaults are Llama's.

    Attributes:
        norm: "rms", "rms_plus_one" (weights w act as 1 + w), or "layer" (with a bias).
        qk_norm: queries and keys are normalised per head before the rotation.
        post_norms: attention and MLP outputs are normalised, too (Gemma's sandwich).
        parallel_block: attention and MLP both read one norm's output, and are added up.
        gated_mlp: act(gate(x)) * up(x); else act(up(x)).
        attention_bias, attention_out_bias, mlp_bias, head_bias: of the projections to
            queries, keys and values, of the one back, of the MLP, and of the logits.
        attention_scale: of query-key products; None: 1 / sqrt(head_dim).
        attention_softcap, logit_softcap: c · tanh(x / c) on scores and logits; None: off.
        embedding_scale: token embeddings are multiplied by it.
        windows: per layer how many positions, its own included, a query sees; 0 for all.
            Empty: every layer sees all.
        local_rope: the rotation in layers that have a window; None: as elsewhere.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    post_norms: bool = False
    parallel_block: bool = False
    gated_mlp: bool = True
    activation: str = "silu"
    tie_embeddings: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    windows: tuple[int, ...] = ()
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    initializer_range: float = 0.02

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one key/value head (grouped-query attention)."""
        return self.num_heads // self.num_kv_heads
