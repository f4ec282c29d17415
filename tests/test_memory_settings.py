"""Settings that save memory: moment and gradient dtypes, remat, chunked cross-entropy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import binom
from test_training import unequal_rows

from pmc_jax.model import ModelConfig, decay_mask, init_params, param_count
from pmc_jax.runs.checkpoints import (
    CheckpointConfig,
    open_checkpoints,
    restore_latest,
    save,
)
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.optimizer import (
    Optimizer,
    cast_moments,
    make_optimizer,
    scale_by_adam,
    stochastically_rounded,
)
from pmc_jax.training.step import (
    RunState,
    abstract_state,
    accumulated_gradients,
    init_state,
    make_train_step,
)
from pmc_jax.unlearning.pmc import PMC, empty_memory

CFG = ModelConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=12, attention_bias=True,
)  # fmt: skip
TIED = ModelConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=12, tie_embeddings=True, norm="layer", head_bias=True,
)  # fmt: skip


def optimizer_of(moment_dtype: str | None, cfg: ModelConfig = CFG) -> optax.GradientTransformation:
    settings = Optimizer(learning_rate=1e-3, schedule="constant", moment_dtype=moment_dtype)
    return make_optimizer(settings, cfg, optax.constant_schedule(1e-3))


def dtypes(tree) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def initial(cfg: ModelConfig = CFG):
    return jax.jit(init_params, static_argnums=1)(jax.random.key(0), cfg)


@cache
def stepped(moment_dtype: str | None, gradient_dtype: str | None):
    """The state after twelve steps."""
    optimizer = optimizer_of(moment_dtype)
    step = make_train_step(optimizer, PMC(), CFG, gradient_dtype=gradient_dtype)
    state = jax.jit(init_state, static_argnums=1)(initial(), optimizer)
    rows = unequal_rows(np.random.default_rng(0))
    for _ in range(12):
        state, losses, _ = step(state, rows, 1.5, {})
    assert np.isfinite(losses.loss)
    return state


def test_adam_is_optax_adamw_where_no_dtype_is_asked_for(rng):
    params = initial()
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    ours = optimizer_of(None)
    theirs = optax.adamw(1e-3, weight_decay=0.01, mask=decay_mask(CFG))
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(
        optax.adamw(lambda _: 1e-3, weight_decay=0.01, mask=decay_mask(CFG)).init(params)
    )
    found, expected = jax.jit(
        lambda: [one.update(gradients, one.init(params), params)[0] for one in (ours, theirs)]
    )()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "gradient"),
    [("float32", None), ("bfloat16", None), (None, "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_steps_are_close_to_those_in_float32(moment, gradient):
    state, expected = stepped(moment, gradient), stepped(None, None)
    adam = state.opt_state[0]
    assert dtypes(state.params) == {"float32"}
    assert dtypes([adam.mu, adam.nu]) == {moment or "float32"}
    described = abstract_state(CFG, optimizer_of(moment), "float32")
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(described)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)
    ]

    def distance(a, b) -> float:
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return float(np.sqrt(sum(float(((x - y) ** 2).sum()) for x, y in leaves)))

    moved = distance(expected.params, initial())
    error = distance(expected.params, state.params)
    exact = moment != "bfloat16" and gradient is None
    assert error == 0 if exact else 0 < error < 0.05 * moved


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [CFG, TIED], ids=["untied", "tied"])
def test_gradients_are_the_rounded_ones(cfg, rng):
    """One micro-batch is rounded once; the sum of two is rounded after each addition."""
    params = initial(cfg)
    rows = unequal_rows(rng, accumulation=2)
    objective = make_objective(PMC(), cfg)

    def gradients(chosen, dtype):
        parts = jax.tree.map(lambda x: x[jnp.asarray(chosen)], rows)
        run = jax.jit(
            lambda p: accumulated_gradients(p, parts, objective, cfg, 1.5, {}, dtype=dtype)
        )
        return run(params)

    for chosen in ([0], [0, 1]):
        found, losses = gradients(chosen, "bfloat16")
        wide, expected = gradients(chosen, None)
        assert float(losses.loss) == float(expected.loss)
        assert dtypes(found) == {"bfloat16"} and dtypes(wide) == {"float32"}
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wide), strict=True):
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(
                a.astype(jnp.float32), b, rtol=len(chosen) * 2**-8, atol=2**-8 * scale
            )
            if len(chosen) == 1:  # except where XLA adds in another order
                assert (a == b.astype(jnp.bfloat16)).mean() > 0.99


@pytest.mark.parametrize("value", [1.0 + 0.3 * 2**-7, -3.7e-9, 2.5e30, 1.5, 0.0])
def test_rounding_keeps_the_expectation(value):
    """The mean over all 2¹⁶ dithers is the value itself."""
    x = jnp.full(2**16, value, jnp.float32)
    found = np.asarray(stochastically_rounded(x, jnp.arange(2**16, dtype=jnp.uint32)), np.float64)
    low = np.float32(value).view(np.uint32) & np.uint32(0xFFFF0000)
    high = np.float64((low + np.uint32(0x10000)).view(np.float32))
    low = np.float64(low.view(np.float32))
    assert set(found) <= {low, high}
    assert found.mean() == pytest.approx(np.float64(np.float32(value)), rel=1e-12)


def test_rounding_leaves_what_is_not_finite():
    x = jnp.asarray([np.inf, -np.inf, np.nan], jnp.float32)
    found = np.asarray(stochastically_rounded(x, jnp.full(3, 0xFFFF, jnp.uint32)), np.float32)
    np.testing.assert_array_equal(found, [np.inf, -np.inf, np.nan])


def test_a_second_moment_in_bfloat16_falls_as_it_should():
    """Rounded to nearest it would never change: 0.1% is less than half a bfloat16 step."""
    size, steps = 20_000, 500
    adam = scale_by_adam(Optimizer(moment_dtype="bfloat16"))
    state = adam.init({"w": jnp.zeros(size)})
    state = state._replace(nu={"w": jnp.ones(size, jnp.bfloat16)})
    nearest = jnp.bfloat16(0.999)
    assert nearest == 1
    state = jax.lax.fori_loop(
        0, steps, lambda _, s: adam.update({"w": jnp.zeros(size)}, s, None)[1], state
    )
    nu = np.asarray(state.nu["w"], np.float64)
    # The mean of `size` sums of independent rounding errors, each at most 2⁻⁸.
    assert nu.mean() == pytest.approx(0.999**steps, abs=6 * 2**-8 * (steps / size) ** 0.5)
    assert (np.asarray(state.mu["w"]) == 0).all()


def test_roundings_are_independent_between_elements_steps_moments_and_leaves():
    """The number of elements in which two of them round the same way is binomial."""
    size, ups = 10_000, []
    halfway = {name: jnp.full(size, 1 + 2.0**-8) for name in "ab"}
    for step in range(2):
        state = optax.ScaleByAdamState(jnp.int32(step), halfway, halfway)
        for leaf in jax.tree.leaves(cast_moments(state, jnp.bfloat16)):
            ups += [np.asarray(leaf, np.float32)] if leaf.shape else []
    assert len(ups) == 8 and all(set(np.unique(up)) == {1, 1 + 2.0**-7} for up in ups)
    ups = [up > 1 for up in ups]
    low, high = binom.interval(1 - 1e-6, size, 0.5)
    for i, a in enumerate(ups):
        assert low < a.sum() < high
        assert low < (a == np.roll(a, 1)).sum() < high
        for b in ups[:i]:
            assert low < (a == b).sum() < high


@pytest.mark.slow
def test_a_continued_run_has_the_same_bits(tmp_path, rng):
    rows = unequal_rows(rng)
    optimizer = optimizer_of("bfloat16")
    step = make_train_step(optimizer, PMC(), CFG, gradient_dtype="bfloat16")
    memory = empty_memory(1, 1)
    state = RunState(init_state(initial(), optimizer), memory)
    with open_checkpoints(tmp_path / "checkpoints", CheckpointConfig(), state) as manager:
        for done in range(1, 6):
            state = RunState(step(state.train, rows, 1.5, {})[0], memory)
            if done == 3:
                save(manager, done, state, {})
                manager.wait_until_finished()
        like = RunState(abstract_state(CFG, optimizer, "float32"), memory)
        again, _ = restore_latest(manager, like)
    for _ in range(2):
        again = RunState(step(again.train, rows, 1.5, {})[0], memory)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def temporaries(
    cfg: ModelConfig, rows=4, time=64, remat="none", gradient_dtype=None, accumulation=1,
    update_norm=False,
) -> int:  # fmt: skip
    """Temporary bytes of a compiled train step, without its arguments and results."""
    optimizer = optimizer_of(None, cfg)
    shape = (accumulation, rows, time)
    batch = Batch(
        tokens=jnp.zeros(shape, jnp.int32),
        segments=jnp.broadcast_to(jnp.arange(1, rows + 1, dtype=jnp.int32)[:, None], shape),
        loss_mask=jnp.ones(shape, bool),
        reference=jnp.zeros((accumulation, rows)),
        sizes=(rows, 0, 0),
    )
    step = make_train_step(
        optimizer, PMC(), cfg, remat=remat, gradient_dtype=gradient_dtype, update_norm=update_norm
    )
    # As a flat list of arrays: jaxtyping rejects the abstract values that `lower` creates.
    state = abstract_state(cfg, optimizer, "float32")
    leaves, structure = jax.tree.flatten((state, batch))
    flat = jax.jit(
        lambda *leaves: step(*jax.tree.unflatten(structure, leaves), 1.0, {}),
        donate_argnums=range(len(jax.tree.leaves(state))),
    )
    return flat.lower(*leaves).compile().memory_analysis().temp_size_in_bytes


def wide(**changes: int) -> ModelConfig:
    """A model with more weights than activations; `changes` replaces sizes."""
    sizes = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 256, "num_layers": 6,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, **changes,
    }  # fmt: skip
    return ModelConfig(**sizes)


@pytest.mark.slow
def test_recomputing_more_takes_less_memory():
    found = [temporaries(wide(), rows=16, remat=remat) for remat in ("none", "dots", "full")]
    assert found[0] > 1.5 * found[1] > 1.5 * 1.2 * found[2]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_in_bfloat16_take_half_the_memory(accumulation):
    """One set of gradients, or two if micro-batches are added up."""
    cfg = wide(hidden_size=256, intermediate_size=1024)
    full, half = (
        temporaries(cfg, rows=1, time=16, gradient_dtype=dtype, accumulation=accumulation)
        for dtype in (None, "bfloat16")
    )
    assert full - half == pytest.approx(accumulation * 2 * param_count(cfg), rel=0.1)


@pytest.mark.slow
def test_without_the_norm_of_the_update_a_cpu_keeps_no_copy_of_it():
    cfg = wide(hidden_size=256, intermediate_size=1024)
    kept, spared = (
        temporaries(cfg, rows=1, time=16, gradient_dtype="bfloat16", update_norm=norm)
        for norm in (True, False)
    )
    assert kept - spared > 2 * param_count(cfg)


@pytest.mark.slow
def test_memory_does_not_grow_with_vocabulary_times_sequence():
    """Memory in terms of V and S is at most f(V) + g(S), so their product does not occur."""
    rows, vocab, time = 8, 2000, 512
    grid = {
        (v, s): temporaries(wide(vocab_size=v * vocab, num_layers=1), rows, s * time, "full")
        for v in (1, 2)
        for s in (1, 2)
    }
    product = grid[2, 2] - grid[1, 2] - grid[2, 1] + grid[1, 1]
    assert product < 0.02 * 4 * rows * vocab * time
