"""Logits that are NaN or infinite end decoding, scoring and training with one line."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import rewrite, tensors_of

import pmc_jax as pmc
from pmc_jax import ask, train
from pmc_jax.cli import evaluate
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import NotFinite, UserError
from pmc_jax.evaluation.likelihood import answer_scores
from pmc_jax.evaluation.relearning import relearn
from pmc_jax.model.forward import normalise

pytestmark = pytest.mark.usefixtures("quick_compilation")

SAMPLINGS = {
    "greedy": Sampling(0.0),
    "top-k": Sampling(1.0, top_k=5),
    "top-p": Sampling(0.7, top_p=0.9, min_new_tokens=2, stop_ids=(1,)),
}


def changed(model, name, change):
    """The model with one leaf outside the layers changed."""
    return model.with_params({**model.params, name: change(model.params[name])})


def scaled(model, factor):
    """The model with larger embeddings."""
    return changed(model, "embed", lambda leaf: leaf * factor)


@pytest.fixture(scope="module")
def broken_token(tiny_model):
    """The tiny model, whose logits are NaN after token 7 alone."""
    return changed(tiny_model, "embed", lambda leaf: leaf.at[7].set(jnp.nan))


def decode(model, prompts, sampling, limits, **options):
    return generate(
        model.for_decoding().params, prompts, cfg=model.config, sampling=sampling,
        key=jax.random.key(0), limits=limits, dtype=model.dtype, **options,
    )  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=list(SAMPLINGS))
def test_the_prompt_whose_logits_are_nan_is_named(broken_token, sampling):
    prompts = [[3, 4, 5], [8], [9, 7, 6], [3, 8]]
    with pytest.raises(NotFinite, match="prompt 2: the logits are not finite") as error:
        decode(broken_token, prompts, sampling, [4] * 4, samples=3)
    assert error.value.index == 2


def test_only_responses_that_are_decoded_count(broken_token, tiny_model):
    prompts = [[3, 4, 5], [8], [9, 7, 6], [3, 8]]
    limits = [6, 6, 0, 6]
    found = decode(broken_token, prompts, Sampling(0.0), limits)
    assert found == decode(tiny_model, prompts, Sampling(0.0), limits)
    assert [len(own[0]) for own in found] == limits


def test_a_response_that_breaks_later_ends_decoding_too(tiny_model):
    """The token after which logits are NaN is chosen in the course of the response."""
    [[response]] = decode(tiny_model, [[3, 4, 5]], Sampling(0.0), [12])
    token = next(t for t in response[1:-1] if t not in (3, 4, 5, response[0]))
    model = changed(tiny_model, "embed", lambda leaf: leaf.at[token].set(jnp.nan))
    before = response.index(token) + 1
    assert decode(model, [[3, 4, 5]], Sampling(0.0), [before]) == [[response[:before]]]
    with pytest.raises(NotFinite):
        decode(model, [[3, 4, 5]], Sampling(0.0), [before + 1])


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1e20), ("bfloat16", 1e37)])
def test_finite_weights_that_overflow_are_found(tiny_model, dtype, factor):
    """Squares overflow in a norm, whose result would be 0 and the logits all equal."""
    model = dataclasses.replace(scaled(tiny_model, factor), dtype=dtype)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(model.params))
    with pytest.raises(NotFinite, match=f"for the question 'Who\\?', computed in {dtype}"):
        model.generate(["Who?"], max_new_tokens=2)
    with pytest.raises(NotFinite, match="for an answer to the prompt"):
        answer_scores(model, [([3, 4], [5, 1])])


def test_large_weights_that_do_not_overflow_are_no_error(tiny_model):
    """The norms take the scale away again."""
    assert scaled(tiny_model, 1e6).generate(["Who?"], max_new_tokens=3)


@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "layer"])
def test_a_norm_is_nan_where_its_squares_overflow_and_only_there(tiny_model, kind):
    cfg = dataclasses.replace(tiny_model.config, norm=kind)
    x = jnp.array([[1.0, -2.0, 3.0], [1e25, -2e25, 3e25], [0.0, 0.0, 0.0]])
    weights = {"a": jnp.ones(3), "a_bias": jnp.ones(3)}
    assert jnp.isfinite(normalise(x, weights, "a", cfg)).all(1).tolist() == [True, False, True]
    slope = jax.grad(lambda x: normalise(x, weights, "a", cfg).sum())(x[:1])
    assert jnp.isfinite(slope).all()


def test_scoring_names_the_prompt(broken_token):
    words = broken_token.template.tokenizer
    pairs = [([3, 4], [5, 1]), ([*words("Who wrote it?").input_ids, 7], [8, 9, 1]), ([3], [4, 1])]
    with pytest.raises(NotFinite, match=r"'Who wrote it\?") as error:
        answer_scores(broken_token, pairs)
    assert error.value.index == 1
    assert len(answer_scores(broken_token, pairs[::2])) == 2


def test_relearning_that_diverges_is_no_verdict(tiny_model):
    steps = relearn(
        tiny_model, [([3, 4], [5, 1])], [0, 3], batch_size=2, learning_rate=1e38, seed=0
    )
    assert next(steps)[0] == 0
    with pytest.raises(UserError, match=r"after 3 steps; try a lower robustness\.learning_rate"):
        next(steps)


QUESTIONS = [{"question": "Where was Mara born?", "answer": "Mara was born in Lisbon."}]
KEPT = [{"question": "Who wrote it?", "answer": "Ivo."}]


@pytest.fixture
def data():
    return pmc.Dataset.from_dicts(forget=QUESTIONS, retain=KEPT)


@pytest.mark.slow
def test_training_blames_the_model_before_the_first_update(tiny_model, data):
    model = scaled(tiny_model, 1e30)
    with pytest.raises(UserError, match=r"not finite .* question 'Where was Mara born\?'"):
        pmc.unlearn(model, data, pmc.PMC(samples=2))
    for method in (pmc.GA(), pmc.NPO()):
        with pytest.raises(UserError) as error:
            pmc.unlearn(model, data, method)
        assert "learning_rate" not in str(error.value)
        assert "target model" in str(error.value)


@pytest.mark.slow
def test_training_blames_the_learning_rate_after_it(tiny_model, data):
    optimizer = pmc.Optimizer(learning_rate=1.0, weight_decay=100.0, schedule="constant")
    training = pmc.Training(epochs=40)
    for method in (pmc.PMC(samples=2), pmc.FineTune()):
        with pytest.raises(UserError, match=r"not finite|loss is") as error:
            pmc.unlearn(tiny_model, data, method, training, optimizer)
        assert str(error.value).endswith("try a lower optimizer.learning_rate")


@pytest.fixture
def overflowing(checkpoint_dir, tmp_path):
    """A directory whose weights are finite and whose logits are not."""
    directory = tmp_path / "overflowing"
    shutil.copytree(checkpoint_dir, directory)
    tensors = tensors_of(directory)
    tensors["model.embed_tokens.weight"] *= 1e30
    rewrite(directory, tensors)
    return directory


@pytest.mark.slow
def test_every_command_ends_with_one_line(overflowing, tofu_dir, tmp_path, capsys, monkeypatch):
    path, data = f"model.path={overflowing}", f"data.path={tofu_dir}"
    small = ["data.retain_rows=4", "evaluation.attack_samples=2", "evaluation.max_new_tokens=4"]
    out = f"evaluations_dir={tmp_path / 'evaluations'}"
    commands = [
        (ask, [path, "question=Who?"], "question 'Who?'"),
        (evaluate, [path, data, "suite=quick", *small, out], "overflowing: quality: "),
        (evaluate, [path, data, "suite=tofu", *small, out, "name=tofu"], "overflowing: quality: "),
        (train, [path, data, *small, f"runs_dir={tmp_path / 'runs'}"], "the question 'Where"),
    ]
    for module, arguments, where in commands:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            module.main()
        error = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and error.startswith("error: "), error
        assert where in error and f"{overflowing}: the model's logits are not finite" in error
    assert not list(tmp_path.rglob("summary.json"))
    for part in tmp_path.rglob("models/*/*.json"):
        assert "measures" not in json.loads(part.read_text())


@pytest.mark.slow
def test_weights_broken_in_memory_give_no_measures(tiny_model, data):
    """No answer is decoded, so that no quality, certificate or extraction strength follows."""
    model = changed(tiny_model, "final_norm", lambda leaf: leaf.at[0].set(jnp.nan))
    for suite in ("quick", "tofu"):
        with pytest.raises(UserError, match=r"model: quality: .* not finite"):
            pmc.evaluate(model, data, suite=suite)
