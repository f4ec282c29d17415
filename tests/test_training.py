"""The optimizer step against torch, the schedule, checkpoints, and the metrics file."""

import json
import logging
import re
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from transformers.optimization import get_linear_schedule_with_warmup

from convert.export import stored_tensors
from convert.families import LLAMA
from convert.load import load_checkpoint
from pmc_jax.errors import UserError
from pmc_jax.runs.checkpoints import (
    CheckpointConfig,
    checksum,
    checksum_of,
    checksums,
    finish,
    open_checkpoints,
    restore_latest,
    save,
    untraced,
    words,
)
from pmc_jax.training.batch import Batch
from pmc_jax.training.objective import make_objective
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.step import (
    RunState,
    accumulated_gradients,
    init_state,
    make_train_step,
)
from pmc_jax.unlearning.pmc import PMC, empty_memory, update_memory

pytestmark = pytest.mark.usefixtures("quick_compilation")
RETAIN_WEIGHT = 1.5


def unequal_rows(rng, accumulation=2, rows=4, time=14) -> Batch:
    """Rows of different lengths, half of them retain rows; one row is empty filler."""
    shape = (accumulation, rows, time)
    length = rng.integers(6, time + 1, shape[:2])
    prompt = rng.integers(2, 5, shape[:2])
    place = np.arange(time)
    mask = place < length[..., None]
    loss_mask = mask & (place >= prompt[..., None])
    mask[-1, -1] = loss_mask[-1, -1] = False
    return Batch(
        tokens=jnp.asarray(np.where(mask, rng.integers(3, 97, shape), 0), jnp.int32),
        segments=jnp.asarray(np.where(mask, np.arange(1, rows + 1)[:, None], 0), jnp.int32),
        loss_mask=jnp.asarray(loss_mask),
        reference=jnp.zeros((accumulation, rows)),
        sizes=(rows // 2, 0, rows - rows // 2),
    )


def torch_loss(model, rows: Batch):
    """λ-weighted token means over the whole optimizer batch, row by row."""
    sums = {False: 0.0, True: 0.0}
    counts = {False: 0, True: 0}
    for part in range(rows.tokens.shape[0]):
        for row in range(rows.tokens.shape[1]):
            mask = np.asarray(rows.segments[part, row]) > 0
            if not mask.any():
                continue
            tokens = torch.tensor(np.asarray(rows.tokens[part, row])[mask]).long()
            target = torch.tensor(np.asarray(rows.loss_mask[part, row])[mask])
            logits = model(tokens[None]).logits[0]
            nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
            kind = row >= rows.tokens.shape[1] // 2
            sums[kind] = sums[kind] + nll[target[1:]].sum()
            counts[kind] += int(target.sum())
    collapse, retain = sums[False] / counts[False], sums[True] / counts[True]
    return collapse + RETAIN_WEIGHT * retain, collapse, retain


def pmc_gradients(checkpoint, rows, retain_weight, dtype):
    objective = make_objective(PMC(), checkpoint.cfg, dtype)
    find = jax.jit(
        lambda p, rows, weight: accumulated_gradients(
            p, rows, objective, checkpoint.cfg, weight, {}
        )
    )
    return find(checkpoint.params, rows, retain_weight)


@pytest.mark.usefixtures("double_llama")
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_step_equals_torch_in_float64(tied, tmp_path, rng, x64):
    model = random_llama(tie_word_embeddings=tied, attention_bias=True).double()
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64")
    rows = unequal_rows(rng)
    loss, collapse, retain = torch_loss(model, rows)
    loss.backward()
    gradients, losses = pmc_gradients(checkpoint, rows, RETAIN_WEIGHT, jnp.float64)
    assert float(losses.forget_loss) == pytest.approx(collapse.item(), abs=1e-10)
    assert float(losses.retain_loss) == pytest.approx(retain.item(), abs=1e-10)
    assert float(losses.loss) == pytest.approx(loss.item(), abs=1e-10)

    def assert_equal(ours, theirs):
        found = dict(stored_tensors(ours, checkpoint.cfg, LLAMA, "float64"))
        assert set(found) == set(theirs)
        for name, tensor in theirs.items():
            assert np.abs(found[name] - tensor).max() <= 1e-8, name

    assert_equal(gradients, {n: p.grad.numpy() for n, p in model.named_parameters()})

    plain = [n for n, _ in model.named_parameters() if "norm" in n or n.endswith("bias")]
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in named if n not in plain], "weight_decay": 0.01},
            {"params": [named[n] for n in plain], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    ours = make_optimizer(
        Optimizer(learning_rate=1e-2, schedule="constant"),
        checkpoint.cfg,
        make_schedule(Optimizer(learning_rate=1e-2, schedule="constant"), 3, 1),
    )
    train_step = make_train_step(ours, PMC(), checkpoint.cfg, dtype=jnp.float64, update_norm=True)
    state = init_state(checkpoint.params, ours)
    for _ in range(2):
        state, _, norms = train_step(state, rows, RETAIN_WEIGHT, {})
        gradient = torch.nn.utils.get_total_norm([p.grad for p in named.values()])
        assert float(norms.gradient) == pytest.approx(gradient.item(), rel=1e-10)
        before = [p.detach().clone() for p in named.values()]
        optimizer.step()
        update = torch.nn.utils.get_total_norm(
            [p.detach() - old for p, old in zip(named.values(), before, strict=True)]
        )
        assert float(norms.update) == pytest.approx(update.item(), rel=1e-10)
        assert_equal(state.params, {n: p.detach().numpy() for n, p in named.items()})
        optimizer.zero_grad()
        torch_loss(model, rows)[0].backward()


@pytest.mark.slow
def test_the_split_into_micro_batches_does_not_matter(tmp_path, rng, x64):
    model = random_llama().double()
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64")
    rows = unequal_rows(rng)

    def gradients(rows):
        found, _ = pmc_gradients(checkpoint, rows, RETAIN_WEIGHT, jnp.float64)
        return jax.tree.leaves(found)

    def split(parts: int) -> Batch:
        """The same rows in `parts` micro-batches, numbered from 1 in each."""
        fields = (rows.tokens, rows.segments, rows.loss_mask)
        tokens, segments, loss_mask = (x.reshape(parts, -1, x.shape[2]) for x in fields)
        is_retain = (rows.segments.max(axis=2) > rows.sizes[0]).reshape(parts, -1)
        size = max(tokens.shape[1] // 2, 1)
        numbers = jnp.where(
            is_retain, size + jnp.cumsum(is_retain, axis=1), jnp.cumsum(~is_retain, axis=1)
        )
        segments = jnp.where(segments > 0, numbers[..., None], 0)
        return Batch(tokens, segments, loss_mask, jnp.zeros((parts, 2 * size)), (size, 0, size))

    whole, single = split(1), split(8)
    for a, b, c in zip(gradients(rows), gradients(whole), gradients(single), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose(a, c, atol=1e-12)


@pytest.mark.parametrize(("updates", "per_epoch"), [(750, 25), (10, 3), (4, 4)])
def test_the_schedule_equals_transformers(updates, per_epoch):
    schedule = make_schedule(Optimizer(learning_rate=3e-4), updates, per_epoch)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    reference = get_linear_schedule_with_warmup(optimizer, per_epoch, updates)
    for update in range(updates):
        assert float(schedule(update)) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()


def test_max_grad_norm_clips(tmp_path, rng):
    random_llama().save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    rows = unequal_rows(rng)
    gradients, _ = pmc_gradients(checkpoint, rows, 1.0, jnp.float32)
    cfg = Optimizer(schedule="constant", learning_rate=1.0, weight_decay=0.0, epsilon=1e3)
    norm = float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients))))

    def first_update(max_grad_norm):
        changed = Optimizer(**{**cfg.__dict__, "max_grad_norm": max_grad_norm})
        optimizer = make_optimizer(changed, checkpoint.cfg, make_schedule(changed, 1, 1))
        state = optimizer.init(checkpoint.params)
        updates, _ = jax.jit(optimizer.update)(gradients, state, checkpoint.params)
        return updates["embed"]

    # With a huge epsilon, AdamW's first update is proportional to the gradient.
    half = first_update(norm / 2) / first_update(None)
    assert float(jnp.nanmedian(half)) == pytest.approx(0.5, rel=1e-2)


def small_state(tmp_path: Path):
    random_llama().save_pretrained(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model")
    optimizer = make_optimizer(
        Optimizer(learning_rate=1e-2, schedule="constant"),
        checkpoint.cfg,
        lambda _: jnp.float32(1e-2),
    )
    train_step = make_train_step(optimizer, PMC(), checkpoint.cfg)
    memory = update_memory(empty_memory(3, 5), [1], [0.25], [[4, 5]])
    return RunState(init_state(checkpoint.params, optimizer), memory), train_step


def test_a_saved_state_is_the_one_that_was_handed_over(tmp_path, rng):
    """The train step donates its state, so a save in progress must not see the next state."""
    state, train_step = small_state(tmp_path)
    rows = unequal_rows(rng)
    with open_checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep=9), state) as manager:
        saved = {}
        for step in range(1, 5):
            train, _, _ = train_step(state.train, rows, 1.0, {})
            state = RunState(train, state.method)
            saved[step] = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
            save(manager, step, state, {"originals": ["a", "ü"]})
        finish(manager)
        for step in (4, 3):
            found, extra = restore_latest(manager, state)
            assert extra == {"originals": ["a", "ü"]}
            assert int(found.train.step) == step
            for leaf, expected in zip(jax.tree.leaves(found), saved[step], strict=True):
                np.testing.assert_array_equal(leaf, expected)
            for path in (tmp_path / "checkpoints" / str(step)).rglob("*"):
                if path.is_file() and path.stat().st_size > 100:
                    path.write_bytes(path.read_bytes()[:50])


def arrays_of(checkpoint: Path) -> Path:
    """The largest file of a checkpoint."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_used(tmp_path, caplog, rng):
    state, _ = small_state(tmp_path)
    directory = tmp_path / "checkpoints"
    with open_checkpoints(directory, CheckpointConfig(keep=9), state) as manager:
        for step in (1, 2):
            save(manager, step, state, {"originals": ["a"]})
        finish(manager)
        flipped = arrays_of(directory / "2")
        content = bytearray(flipped.read_bytes())
        content[len(content) // 2] ^= 1 << int(rng.integers(8))
        flipped.write_bytes(content)
        found, _ = restore_latest(manager, state)
        for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(leaf, expected)
        assert "2 is corrupt" in caplog.text
        assert manager.all_steps() == [1] and (tmp_path / "corrupt" / "2").is_dir()
        save(manager, 2, state, {"originals": ["a"]})
        finish(manager)
        assert sorted(manager.all_steps()) == [1, 2]


@pytest.mark.parametrize("name", ["absl", "asyncio"])
def test_threads_that_fail_after_the_error_are_quiet(caplog, name):
    """Orbax's threads may log the same failure again after the command has said it."""
    logger = logging.getLogger(name)
    before = list(logger.filters)
    try:
        with pytest.raises(UserError), untraced():
            raise UserError("a checkpoint could not be written")
        logger.error("raised an exception", exc_info=ValueError("No space left on device"))
        assert not caplog.records
    finally:
        for added in [own for own in logger.filters if own not in before]:
            logger.removeFilter(added)
    with untraced():
        pass
    assert logger.filters == before


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(tmp_path, capfd):
    state, _ = small_state(tmp_path)
    directory = tmp_path / "checkpoints"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(
            UserError, match=r"could not be written \(File too large\); last good one: 1$"
        ) as caught,
        open_checkpoints(directory, CheckpointConfig(keep=1), state) as manager,
    ):
        save(manager, 1, state, {"originals": ["a"]})
        finish(manager)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
            save(manager, 2, state, {"originals": ["a"]})
            finish(manager)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert str(directory) in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    with open_checkpoints(directory, CheckpointConfig(keep=1), state) as manager:
        found, _ = restore_latest(manager, state)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of memory to reset")
def test_saving_and_restoring_take_no_memory_for_a_second_state(tmp_path):
    """Neither for copies nor for a compressed one; the peak is what the kernel says."""
    count, size = 48, 6 * 2**20

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    def start() -> int:
        Path("/proc/self/clear_refs").write_text("5")
        return peak()

    keys = jax.random.split(jax.random.key(0), count)
    state = {str(i): jax.random.normal(key, (size // 4,)) for i, key in enumerate(keys)}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    jax.block_until_ready(state)
    checksums(state)  # compiles
    with open_checkpoints(tmp_path / "checkpoints", CheckpointConfig(), like) as manager:
        before = start()
        save(manager, 1, state, {})
        finish(manager)
        assert peak() - before < count * size / 2
        before = start()
        again, _ = restore_latest(manager, state)
        assert peak() - before < 1.5 * count * size  # the restored state, and half of it
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_when_no_checkpoint_is_good_all_stay(tmp_path):
    state, _ = small_state(tmp_path)
    with open_checkpoints(tmp_path / "checkpoints", CheckpointConfig(), state) as manager:
        save(manager, 1, state, {"originals": ["a"]})
        finish(manager)
        path = arrays_of(tmp_path / "checkpoints" / "1")
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(UserError, match=r"none of the checkpoints \[1\] is readable"):
            restore_latest(manager, state)
        assert path.is_file()


@settings(deadline=None)
@given(
    arrays(np.uint32, array_shapes(max_dims=3, max_side=9)),
    st.integers(0, 10**6),
    st.integers(0, 31),
)
def test_a_checksum_sees_every_single_bit(values, place, bit):
    flipped = values.copy()
    flipped.reshape(-1)[place % values.size] ^= np.uint32(1 << bit)
    assert int(checksum(words(values))) != int(checksum(words(flipped)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_checksum_covers_device_and_host_arrays_alike(dtype, rng):
    values = jnp.asarray(rng.normal(size=(3, 4)) * 100).astype(dtype)
    other = values.at[2, 3].set(-values[2, 3] - 1)
    assert int(checksum(words(values))) != int(checksum(words(other)))
    if dtype != "bfloat16":
        flat = words(values).reshape(-1)
        assert int(checksum(words(np.asarray(values)))) == int(checksum(flat))


@pytest.mark.parametrize("shape", [(6,), (3, 4), (3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_checksum_layer_by_layer_is_that_of_the_whole(shape, dtype, rng):
    values = jnp.asarray(rng.normal(size=shape) * 100).astype(dtype)
    assert int(checksum_of(values)) == int(checksum(words(values).reshape(-1)))


def test_checksums_see_the_last_bit_of_host_doubles_and_name_what_they_sum(rng):
    host, device = rng.normal(size=5), jnp.arange(3.0)
    found = checksums({"a": {"b": host}, "c": device})
    assert found == {"a.b": int(checksum(words(host))), "c": int(checksum(words(device)))}
    last_bit = checksums({"a": {"b": np.nextafter(host, 9)}, "c": device})
    assert last_bit["a.b"] != found["a.b"] and last_bit["c"] == found["c"]


def test_metrics_go_on_where_the_checkpoint_was(tmp_path):
    from pmc_jax.runs.metrics import Metrics

    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    for step in range(5):
        first.append({"step": step, "loss": step / 2})
    first.close()
    path.write_text("damaged")
    again = Metrics(path, first.rows[:3])
    again.append({"step": 3, "loss": 9.0})
    again.close()
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in steps] == [(0, 0), (1, 0.5), (2, 1), (3, 9)]
