"""The published architectures, without their weights: `configs/model/` against `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from convert.families import family_of
from convert.load import rows_of, stored_shape
from pmc_jax.cli.config import config_directory
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.model import param_count
from pmc_jax.training.optimizer import make_schedule
from pmc_jax.unlearning.schedule import Training

# The parameter counts that the hub shows. Qwen3-1.7B's files hold the tied embedding twice.
PUBLISHED = {
    "phi_1_5": 1_418_270_720,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_1_8b": 8_030_261_248,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 4_300_079_472,
    "gemma3_12b": 12_187_325_040,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_1_7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "mistral_7b": 7_248_023_552,
    "smollm2_135m": 134_515_008,
}
MODELS = config_directory() / "model"


def architecture_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((MODELS / f"{name}.yaml").read_text())["architecture"]


def test_every_architecture_is_checked():
    with_one = {path.stem for path in MODELS.glob("*.yaml") if "architecture:" in path.read_text()}
    assert with_one == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_and_counts_are_those_of_the_published_model(name):
    """Every tensor has the name and shape of `transformers`; the total is the published one."""
    architecture = architecture_of(name)
    family = family_of(architecture)
    auto = AutoModelForImageTextToText if family.untouched else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(family.model_type, **architecture))
    theirs = {key: tuple(p.shape) for key, p in model.named_parameters()}
    cfg = family.from_hf(architecture)
    found = {
        tensor: stored_shape(row, specs)
        for row, specs in rows_of(family, cfg, theirs)
        for tensor in row.names(cfg.num_layers)
    }
    others = {key for key in theirs if family.untouched and key.startswith(family.untouched)}
    assert found == {key: shape for key, shape in theirs.items() if key not in others}
    untouched = sum(model.get_parameter(key).numel() for key in others)
    assert param_count(cfg) + untouched == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_head_of_each_file_counts_right(name):
    first = (MODELS / f"{name}.yaml").read_text().splitlines()[0]
    assert f"{PUBLISHED[name]:,}" in first


PAPER = {
    "tofu_phi_1_5": {
        "method.samples": 5, "method.temperature": 1.25, "method.top_k": 50,
        "method.top_p": 0.95, "method.retain_weight": 1.5, "method.min_len": 0,
        "training.epochs": 40, "training.batch_size": 16, "training.accumulation": 4,
        "optimizer.learning_rate": 1e-5, "prompt.question": "Question: {question}\n",
        "prompt.answer": "Answer: {answer}", "model.architecture.hidden_size": 2048,
    },
    "tofu_llama3_2_3b": {
        "method.samples": 20, "method.temperature": 0.9, "method.top_k": 50,
        "method.top_p": 0.95, "method.retain_weight": 1.25, "method.min_len": 0,
        "training.epochs": 30, "training.batch_size": 8, "training.accumulation": 2,
        "optimizer.learning_rate": 1e-5, "prompt.system": "You are a helpful assistant.",
        "prompt.date_string": "10 Apr 2025", "model.architecture.hidden_size": 3072,
    },
    "tofu_llama3_1_8b": {
        "method.samples": 20, "method.min_len": 2, "training.batch_size": 8,
        "training.accumulation": 2, "model.architecture.hidden_size": 4096,
    },
    "tofu_smollm2_135m": {
        "method.samples": 8, "method.min_len": 2, "training.batch_size": 8,
        "training.accumulation": 2, "model.dtype": "float32",
        "model.architecture.hidden_size": 576,
    },
    "tofu_gemma3_12b": {
        "method.samples": 20, "training.max_length": 200, "prompt.system": PromptConfig().system,
        "model.architecture.text_config.hidden_size": 3840,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_experiments_have_the_published_settings(name):
    with initialize_config_dir(str(Path(config_directory()).resolve()), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={name}", "model.path=somewhere"])
    for key, value in PAPER[name].items():
        assert OmegaConf.select(config, key) == value, key
    assert config.optimizer.weight_decay == 0.01 and config.optimizer.max_grad_norm is None
    assert config.training.max_length == 200 and config.data.forget == "forget10"


@pytest.mark.parametrize(
    ("name", "updates", "warmup"), [("tofu_phi_1_5", 250, 6), ("tofu_llama3_2_3b", 750, 25)]
)
def test_experiments_make_the_published_updates(name, updates, warmup):
    """With forget10's 400 questions, the schedule peaks after warm-up and ends at 0."""
    with initialize_config_dir(str(Path(config_directory()).resolve()), version_base="1.3"):
        composed = compose("train", overrides=[f"experiment={name}", "model.path=somewhere"])
    config = OmegaConf.to_object(composed)
    assert config.training.total_updates(400) == updates
    schedule = make_schedule(config.optimizer, updates, config.training.epoch_length(400))
    rates = [float(schedule(step)) for step in range(updates + 1)]
    assert rates[0] == rates[updates] == 0 and max(rates) == rates[warmup]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[1] == pytest.approx(config.optimizer.learning_rate / warmup, rel=1e-6)
    phi = Training(epochs=40, batch_size=16, accumulation=4)
    assert phi.total_updates(400) == 280 and phi.updates_per_epoch(400) == 7
    # not 122, which floating point makes of 30 · 4.1
    assert Training(epochs=30, batch_size=10, count_partial_updates=False).total_updates(41) == 123
