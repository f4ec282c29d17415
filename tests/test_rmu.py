"""RMU: its layers, its control vector, and the update of a part of the weights."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig
from pmc_jax.training.optimizer import only_where
from pmc_jax.unlearning.baselines.rmu import (
    RMU,
    activation_distance,
    control_vector,
    is_trained,
    steered_layer,
)


def model(layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_layers=layers, num_heads=1,
        num_kv_heads=1, head_dim=8,
    )  # fmt: skip


@pytest.mark.parametrize(("layers", "steered"), [(32, 7), (28, 6), (16, 3), (4, 2), (2, 1), (1, 0)])
def test_the_steered_layer_is_as_deep_as_in_the_paper(layers, steered):
    assert steered_layer(RMU(), model(layers)) == steered
    assert steered_layer(RMU(layer=0), model(layers)) == 0
    with pytest.raises(UserError, match=f"method.layer={layers}: expected less than {layers}"):
        steered_layer(RMU(layer=layers), model(layers))


@pytest.mark.parametrize(
    ("layer", "count", "trained"), [(7, 3, [5, 6, 7]), (7, 1, [7]), (1, 3, [0, 1]), (0, 2, [0])]
)
def test_the_layers_up_to_it_are_trained(layer, count, trained):
    found = is_trained(RMU(layer=layer, trained_layers=count), model(8))
    assert np.flatnonzero(found).tolist() == trained


def test_the_control_vector_is_of_its_length_and_of_the_seed():
    found = control_vector(RMU(steering=6.5), 0, 4096)
    assert np.linalg.norm(found) == pytest.approx(6.5)
    assert (found >= 0).all()
    # Entries are uniform in [0, 1): their mean divided by their root mean square is √3 / 2.
    assert found.mean() * np.sqrt(4096) / 6.5 == pytest.approx(np.sqrt(3) / 2, rel=0.02)
    np.testing.assert_array_equal(found, control_vector(RMU(steering=6.5), 0, 4096))
    assert not np.allclose(found, control_vector(RMU(steering=6.5), 1, 4096))


def test_distances_of_bfloat16_activations_are_float32():
    states = jnp.asarray([[300.0, 1.0]], jnp.bfloat16)
    found = activation_distance(states, jnp.zeros(2, jnp.bfloat16))
    assert found.dtype == jnp.float32 and float(found[0]) == (300**2 + 1) / 2


def test_what_is_not_trained_keeps_its_bits():
    trained = {"a": np.array([[True], [False]]), "b": np.zeros((), bool)}
    params = {"a": jnp.asarray([[1.0, 2.0], [-0.0, 3.0]]), "b": jnp.asarray([-0.0, 0.0, 5.0])}
    updates = {"a": jnp.full((2, 2), 0.5), "b": jnp.full(3, jnp.nan)}
    transformation = only_where(trained)
    found, _ = transformation.update(updates, transformation.init(params))
    after = optax.apply_updates(params, found)
    np.testing.assert_array_equal(after["a"][0], [1.5, 2.5])
    for new, old in ((after["a"][1], params["a"][1]), (after["b"], params["b"])):
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
