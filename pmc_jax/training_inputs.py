"""What a run reads, checked before anything is written."""

import dataclasses

from jax.sharding import Mesh

from pmc_jax.cli.config import Config
from pmc_jax.data import Dataset, load_dataset
from pmc_jax.data.encode import EncodedData, encode, fingerprints
from pmc_jax.model.language_model import LanguageModel, load_language_model, mesh_of
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import checksums, seal
from pmc_jax.training.targets import MethodData, method_data, target_fingerprints
from pmc_jax.unlearning.config import PMCConfig, RMUConfig
from pmc_jax.unlearning.rmu import steered_layer


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads, but for the weights, as checked before anything is written.

    `targets` are what a method other than PMC trains on; a PMC run has none.
    """

    model: LanguageModel
    dataset: Dataset
    encoded: EncodedData
    targets: MethodData | None
    mesh: Mesh | None


def load_inputs(cfg: Config) -> tuple[Inputs, Params]:
    """Load and check data, tokenizer and weights."""
    dataset = load_dataset(cfg.data)
    mesh = mesh_of(cfg.model, cfg.mesh)
    model = load_language_model(cfg.model, cfg.prompt, mesh)
    if isinstance(cfg.method, RMUConfig):
        steered_layer(cfg.method, model.config)  # an error now rather than later
    template, vocab_size = model.template, model.config.vocab_size
    encoded = encode(dataset, template, cfg.training.max_length, vocab_size)
    targets = None
    if not isinstance(cfg.method, PMCConfig):
        targets = method_data(cfg.method, cfg.data, encoded, template, vocab_size, cfg.seed)
    return Inputs(model, dataset, encoded, targets, mesh), model.params


def fingerprints_of(inputs: Inputs, params: Params) -> dict[str, str]:
    """Hashes by name of everything that the run reads."""
    targets = target_fingerprints(inputs.targets) if inputs.targets else {}
    weights = {"model weights": seal(checksums(params))}
    return {**fingerprints(inputs.dataset, inputs.encoded), **targets, **weights}
