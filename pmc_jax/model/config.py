"""Shape and switches of a decoder. Hashable, so that it can be a static argument of `jax.jit`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its context extensions.

    Attributes:
        theta: base of the frequencies.
        kind: "default"; "linear" (positions are divided by `factor`); "llama3" (low frequencies are
            divided by `factor`, high ones are kept, with a smooth ramp between); or "longrope"
            (each pair's frequency is divided by its `short_factor`, or by its `long_factor` in
            sequences longer than `original_max_position_embeddings`).
        partial: the share of each head's dimensions that is rotated; they are the first ones.
        attention_factor: multiplies cosines and sines.
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
        norm: "rms", "rms_plus_one" (weights w act as 1 + w) or "layer" (with a bias).
        qk_norm: whether queries and keys are normalised per head before the rotation.
        post_norms: whether attention and MLP outputs are normalised too (Gemma's sandwich norms).
        parallel_block: whether attention and MLP read the output of one norm, side by side.
        gated_mlp: act(gate(x)) · up(x) instead of act(up(x)).
        attention_bias, attention_out_bias, mlp_bias, head_bias: whether there are biases in the
            projections to queries, keys and values, in the output projection, in the MLP, and on
            the logits.
        attention_scale: multiplies query-key products; None: 1 / sqrt(head_dim).
        attention_softcap, logit_softcap: c of c · tanh(x / c) on scores and logits; None: off.
        embedding_scale: multiplies token embeddings.
        windows: for each layer, how many positions a query sees, its own included; 0: all. Empty:
            every layer sees all positions.
        local_rope: the rotation in layers that have a window; None: `rope`.
        initializer_range: standard deviation of random weights.
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
        """Number of query heads that share a key-value head (grouped-query attention)."""
        return self.num_heads // self.num_kv_heads
