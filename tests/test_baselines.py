"""The baselines' losses and gradients against torch, and their limits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import random_llama, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from published import (
    CONFIGS,
    CONTROL,
    ROWS,
    answers_by_kind,
    batch_of,
    flatness,
    is_updated,
    published_loss,
    token_losses,
)

from convert.export import stored_tensors
from convert.families import LLAMA
from convert.load import load_checkpoint
from pmc_jax.errors import UserError
from pmc_jax.language_model import LanguageModel
from pmc_jax.settings import MOST, check
from pmc_jax.training.objective import make_objective
from pmc_jax.training.step import accumulated_gradients, init_state, make_train_step
from pmc_jax.unlearning.baselines.dpo import dpo_loss
from pmc_jax.unlearning.baselines.npo import npo_loss
from pmc_jax.unlearning.baselines.pdu import PDU
from pmc_jax.unlearning.baselines.satimp import satimp_loss
from pmc_jax.unlearning.baselines.simnpo import simnpo_loss
from pmc_jax.unlearning.losses import Targets
from pmc_jax.unlearning.method import Examples, RetainingMethod, Run, Task, methods
from pmc_jax.unlearning.schedule import Training

pytestmark = pytest.mark.usefixtures("quick_compilation")
# The other methods share these terms, or test_token_losses has them in closed form.
ONE_OF_A_KIND = "finetune", "gd", "npo", "simnpo", "dpo", "undial", "rmu", "pdu"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two small random models in float64, trained model and target, each in torch and in JAX."""
    found = []
    for seed in (0, 1):
        directory = tmp_path_factory.mktemp("double")
        model = random_llama(seed, attention_bias=True).double()
        model.save_pretrained(directory)
        with jax.enable_x64(True):
            found.append((model, load_checkpoint(directory, dtype="float64")))
    return found


def compiled_gradients(name, checkpoint, batch, target):
    """Gradients and losses of a batch; all weights are arguments."""
    method = CONFIGS[name]
    objective = make_objective(method, checkpoint.cfg, jnp.float64)
    weight = method.retain_weight if isinstance(method, RetainingMethod) else 0.0

    @jax.jit
    def find(params, batch, retain_weight, frozen):
        return accumulated_gradients(
            params, batch, objective, checkpoint.cfg, retain_weight, frozen
        )

    frozen = {"params": target.params, "control": jnp.asarray(CONTROL)}
    return find(checkpoint.params, batch, weight, frozen)


def test_every_baseline_has_a_reference():
    assert {config.name for config in CONFIGS.values()} | {"pmc"} == set(methods())
    assert all(kind().name == name for name, kind in methods().items())


BOUNDS = {
    "samples": {"least": 1, "most": 65536},
    "temperature": {"least": 0},
    "pmc.temperature": {"above": 0},
    "top_k": {"least": 0},
    "top_p": {"above": 0, "most": 1},
    "max_new_tokens": {"least": 1},
    "selection_temperature": {"least": 0},
    "min_len": {"least": 0},
    "retain_weight": {"least": 0},
    "retain_per_forget": {"least": 0, "most": 1024},
    "final_temperature": {"above": 0},
    "final_retain_weight": {"least": 0},
    "beta": {"above": 0},
    "alpha": {"least": 0},
    "beta1": {"least": 0},
    "beta2": {"least": 0},
    "skipped_tokens": {"least": 0},
    "kept": {"least": 1},
    "beginnings": {"least": 0, "most": 64},
    "layer": {"least": 0},
    "trained_layers": {"least": 1},
    "steering": {"least": 0},
    "gamma": {"least": 0},
    "epsilon": {"least": 0},
    "dual_step_size": {"least": 0},
    "dual_warmup_epochs": {"least": 0},
}
"""The bounds of the methods' numbers. A name means the same in every method that has it."""


def is_number(field: dataclasses.Field) -> bool:
    return any(kind in str(field.type) for kind in ("int", "float"))


def test_every_number_has_its_bounds():
    own = {name: dataclasses.fields(kind) for name, kind in methods().items()}
    numbers = [(name, field) for name in own for field in own[name] if is_number(field)]
    assert {field.name for _, field in numbers} == {key for key in BOUNDS if "." not in key}
    for name, field in numbers:
        bounds = BOUNDS.get(f"{name}.{field.name}", BOUNDS[field.name])
        assert dict(field.metadata) == {"most": MOST, **bounds}, (name, field.name)
        for kind, bound in bounds.items():
            at, outside = bound, bound + (1 if kind == "most" else -1)
            wrong = [outside, at] if kind == "above" else [outside]
            for value in wrong:
                method = dataclasses.replace(methods()[name](), **{field.name: value})
                with pytest.raises(UserError, match=rf"method\.{field.name}={value}: expected"):
                    check(method, "method.")
            if kind != "above":
                check(dataclasses.replace(methods()[name](), **{field.name: at}), "method.")


@pytest.mark.usefixtures("double_llama")
@pytest.mark.parametrize("name", slow_but(ONE_OF_A_KIND, CONFIGS))
def test_losses_and_gradients_equal_the_published_ones(name, tiny, rng, x64):
    (model, checkpoint), (target, frozen) = tiny
    answers = answers_by_kind(rng)
    model.zero_grad()
    expected = published_loss(name, model, target, answers)
    expected.backward()
    gradients, losses = compiled_gradients(name, checkpoint, batch_of(answers), frozen)
    assert float(losses.loss) == pytest.approx(expected.item(), rel=1e-10)
    found = dict(stored_tensors(gradients, checkpoint.cfg, LLAMA, "float64"))
    for parameter, tensor in model.named_parameters():
        if not is_updated(name, parameter):
            assert not found[parameter].any()
            continue
        scale = max(float(tensor.grad.abs().max()), 1e-3)
        difference = np.abs(found[parameter] - tensor.grad.numpy()).max()
        assert difference <= 1e-8 * scale, parameter


@pytest.mark.parametrize("name", slow_but(["dpo"], ["dpo", "gd_kl", "rmu"]))
def test_the_split_into_micro_batches_does_not_matter(name, tiny, rng, x64):
    (_, checkpoint), (_, frozen) = tiny
    answers = answers_by_kind(rng, accumulation=2, retain=ROWS)

    def split(own, parts: int):
        own = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[2:]), own)
        numbers = jnp.arange(1, own.tokens.shape[1] + 1)[:, None]
        return dataclasses.replace(own, segments=jnp.where(own.segments > 0, numbers, 0))

    def gradients(parts: int):
        batch = batch_of({kind: split(own, parts) for kind, own in answers.items()})
        return compiled_gradients(name, checkpoint, batch, frozen)

    (whole, whole_losses), (single, single_losses) = gradients(1), gradients(2 * ROWS)
    assert float(whole_losses.loss) == pytest.approx(float(single_losses.loss), abs=1e-12)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def run_of(method: PDU, training: Training, model: LanguageModel, visited: int) -> Run:
    return Run(method, Task(model, training, 0, [], []), Examples(visited), {})


@pytest.mark.usefixtures("double_llama")
def test_the_weights_of_pdu_and_its_multiplier_take_turns(tiny_model, rng, tmp_path, x64):
    """Six steps of descent on the Lagrangian and ascent of λ, against torch's own."""
    model = random_llama(2).double()
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64")
    method = PDU(retain_weight=0.6, epsilon=4.5, dual_step_size=1.5, dual_warmup_epochs=1)
    training = Training(epochs=3, batch_size=ROWS, accumulation=1)
    run = run_of(method, training, tiny_model, 2 * ROWS)
    optimizer, rate = optax.sgd(0.05), 0.05
    train_step = make_train_step(optimizer, method, checkpoint.cfg, dtype=jnp.float64)
    state = method.initial_state(run.task)
    train = init_state(checkpoint.params, optimizer)
    multiplier, seen = 0.6, []
    assert run.total == 6
    for step in range(run.total):
        answers = answers_by_kind(rng)
        weight = method.retain_weight_at(run, state, step)
        train, losses, _ = train_step(train, batch_of(answers), weight, {})
        state = method.after_step(run, state, step, float(losses.retain_loss))

        model.zero_grad()
        excess = torch.cat(token_losses(model, answers["retain"])).mean() - method.epsilon
        (flatness(model, answers["forget"]) + multiplier * excess).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
        if step >= 2:  # the first epoch has two steps
            multiplier = max(0.0, multiplier + method.dual_step_size * excess.item())
        seen.append(multiplier)
        assert float(state["retain_weight"]) == pytest.approx(multiplier, rel=1e-9, abs=1e-12)
    assert seen[1] == 0.6 and len(set(seen)) > 3, "λ must move, so that the test shows something"
    found = dict(stored_tensors(train.params, checkpoint.cfg, LLAMA, "float64"))
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), atol=1e-10)


@settings(deadline=None)
@given(
    before=st.floats(0, 10),
    retain_loss=st.floats(0, 10),
    epsilon=st.floats(0, 5),
    rate=st.floats(0, 3),
)
def test_the_multiplier_of_pdu_is_never_negative(tiny_model, before, retain_loss, epsilon, rate):
    method = PDU(epsilon=epsilon, dual_step_size=rate, dual_warmup_epochs=0)
    run = run_of(method, Training(), tiny_model, 1)
    state = method.after_step(run, {"retain_weight": np.array(before)}, 0, retain_loss)
    assert float(state["retain_weight"]) == max(0.0, before + rate * (retain_loss - epsilon))


def test_pdu_without_retain_pairs_is_an_error():
    with pytest.raises(UserError, match=r"method\.retain_per_forget=0: expected at least 1"):
        PDU(retain_per_forget=0).check()
    assert PDU(retain_weight=0.0).retain_pairs == 1


@st.composite
def targets(draw, rows: int = 4, time: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Token NLLs and a mask in which each row has at least one token."""
    values = st.floats(0.01, 4.0)
    nll = draw(st.lists(values, min_size=rows * time, max_size=rows * time))
    lengths = draw(st.lists(st.integers(1, time), min_size=rows, max_size=rows))
    return np.reshape(nll, (rows, time)), np.arange(time) < np.array(lengths)[:, None]


def make_targets(nll, mask, reference=None, parts=slice(None)) -> Targets:
    reference = np.zeros(len(nll)) if reference is None else reference
    numbers = np.arange(1, len(mask[parts]) + 1)[:, None]
    return Targets(
        losses=jnp.asarray(nll)[parts],
        mask=jnp.asarray(mask)[parts],
        segments=jnp.asarray(np.where(mask[parts], numbers, 0)),
        reference=jnp.asarray(reference)[parts],
        tokens=jnp.asarray(mask).sum(),
        answers=jnp.asarray(mask).any(axis=-1).sum(),
    )


def gradient(loss, nll, mask, reference=None):
    """d loss / d nll. The gradient with respect to any weight is linear in it."""
    return np.asarray(jax.grad(lambda x: loss(make_targets(x, mask, reference)))(jnp.asarray(nll)))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(targets(), st.integers(1, 3))
def test_parts_add_up_whatever_the_split(data, cut):
    """The loss of a batch is the sum of the losses of its parts."""
    nll, mask = data
    reference = nll.sum(axis=1) / 2
    with jax.enable_x64(True):
        for loss in (
            lambda t: npo_loss(t, 0.3),
            lambda t: simnpo_loss(t, 2.0, 0.1),
            lambda t: dpo_loss(t, dataclasses.replace(t, reference=t.reference * 0.3), 0.2),
        ):
            whole = loss(make_targets(nll, mask, reference))
            parts = (
                loss(make_targets(nll, mask, reference, part))
                for part in (slice(None, cut), slice(cut, None))
            )
            assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(targets())
def test_npo_without_temperature_is_gradient_ascent_on_sequences(data):
    """β → 0: ∇NPO → −∇ mean N; at θ_ref this is exact for every β."""
    nll, mask = data
    ascent = -mask.astype(float) / len(mask)
    with jax.enable_x64(True):
        limit = gradient(lambda t: npo_loss(t, 1e-7), nll, mask, np.full(len(nll), 3.0))
        np.testing.assert_allclose(limit, ascent, atol=1e-5)
        for beta in (0.1, 1.0, 7.0):
            here = gradient(
                lambda t, beta=beta: npo_loss(t, beta), nll, mask, (nll * mask).sum(axis=1)
            )
            np.testing.assert_allclose(here, ascent, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(targets())
def test_simnpo_without_temperature_is_gradient_ascent_on_means(data):
    """β → 0, γ = 0: ∇SimNPO → −∇ mean(N/|y|)."""
    nll, mask = data
    with jax.enable_x64(True):
        limit = gradient(lambda t: simnpo_loss(t, 1e-7, 0.0), nll, mask)
        expected = -mask.astype(float) / mask.sum(axis=1, keepdims=True) / len(mask)
        np.testing.assert_allclose(limit, expected, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(targets(), st.floats(0.01, 5.0))
def test_dpo_of_an_answer_over_itself_is_still(data, beta):
    nll, mask = data
    with jax.enable_x64(True):
        same = lambda t: dpo_loss(t, t, beta)  # noqa: E731
        reference = np.linspace(0, 9, len(nll))
        value = float(same(make_targets(nll, mask, reference)))
        assert value == pytest.approx(2 / beta * math.log(2), rel=1e-12)
        assert not gradient(same, nll, mask, reference).any()


def test_satimp_of_tokens_that_are_certain_is_finite():
    """Also if rounding makes an NLL slightly negative."""
    nll, mask = np.array([[0.0, -1e-7, 1e-7]], np.float32), np.ones((1, 3), bool)
    loss = lambda t: satimp_loss(t, 5.0, 0.1)  # noqa: E731
    assert math.isfinite(loss(make_targets(nll, mask)))
    assert np.isfinite(gradient(loss, nll, mask)).all()
