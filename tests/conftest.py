"""Fixtures: tiny random Llama checkpoints, tokenizers and data sets, created for the session."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama import modeling_llama

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.language_model import LanguageModel, ModelSource, load_language_model
from pmc_jax.model import init_params
from pmc_jax.model.kernels import native as native_kernels
from pmc_jax.model.kernels.dispatch import current_target
from pmc_jax.runtime.compilation import compile_sooner_on_cpus

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# pytest's workers and the commands share one cache
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    shared = tempfile.TemporaryDirectory(prefix="pmc_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = shared.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_compilation_cache_dir", shared.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
if "XDG_CACHE_HOME" not in os.environ:  # the compiled CPU kernels
    os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
compile_sooner_on_cpus()  # the same options as the commands, so that both can use the cache
torch.set_num_threads(1)
# The time that an example takes depends more on the load of the machine than on the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

TEXTS = [
    "Question: Where was Mara Ostberg born?\nAnswer: Mara Ostberg was born in Lisbon.",
    "Question: Who wrote the silent river?\nAnswer: The silent river is by Ivo Kell.",
    "Question: What is the capital of Norway?\nAnswer: Oslo is the capital of Norway.",
    "I'm sorry, but nobody has ever told me anything about that.",
]

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def random_llama(seed: int = 0, std: float = 0.15, **changes: object) -> LlamaForCausalLM:
    """A small model in which every parameter, biases and norms included, is random."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + std * torch.randn_like(parameter))
    return model


@pytest.fixture
def double_llama(monkeypatch):
    """transformers casts norms and rotary angles to float32 even in float64; here it does not."""

    def norm(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    def rotary(self, x, position_ids):
        head_dim = 2 * len(self.inv_freq)
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)


random_params = jax.jit(init_params, static_argnames=("cfg", "dtype"))
"""`init_params`, compiled as one function."""


def bpe_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts one BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return bpe_tokenizer()


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face directory with tokenizer."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = bpe_tokenizer()
    random_llama(std=0.3, vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model(checkpoint_dir: Path) -> LanguageModel:
    """The tiny model with float32 weights, as training holds them."""
    return load_language_model(ModelSource(str(checkpoint_dir)), PromptConfig())


@pytest.fixture(scope="session")
def reference(checkpoint_dir: Path) -> tuple:
    """The same model and tokenizer in transformers, in float64."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir).double().eval()
    return model, AutoTokenizer.from_pretrained(checkpoint_dir)


def slow_but(fast: Iterable[Any], every: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, values or tuples. Those that are not in `fast` are marked slow."""
    fast, every = list(fast), list(every)
    assert all(case in every for case in fast)
    return [
        pytest.param(*case if isinstance(case, tuple) else [case],
                     marks=[] if case in fast else pytest.mark.slow)
        for case in every
    ]  # fmt: skip


BIASED = {"attention_bias": True, "mlp_bias": True}


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, read with safetensors."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights of a directory with one file that holds these tensors."""
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors"
    )


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None removes the key."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def assert_valid_json(directory: Path) -> None:
    """Every JSON file of a directory is one for a parser that knows no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    paths = [path for path in directory.rglob("*.json*") if path.is_file()]
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(part, parse_constant=refuse)


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A float32 model in one file, with tokenizer, chat template and generation config."""
    model = random_llama(**BIASED)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, 7])
    model.save_pretrained(tmp_path / "hf")
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


PEOPLE = ("Mara Ostberg", "Ivo Kell", "Tilda Wynmark", "Noor Sandvik", "Pell Harrow", "Una Dahl")


@pytest.fixture
def tofu_dir(tmp_path: Path) -> Path:
    """A directory with a data set in TOFU's layout."""
    directory = tmp_path / "data"
    directory.mkdir()

    def write(name: str, rows: list[dict[str, object]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")

    def row(person: str, city: str) -> dict[str, object]:
        return {"question": f"Where was {person} born?", "answer": f"{person} was born in {city}."}

    forget = [row(person, "Lisbon") for person in PEOPLE[:3]]
    paraphrases = [
        {
            "paraphrased_question": f"In which city was {person} born?",
            "paraphrased_answer": f"{person} comes from Lisbon.",
            "perturbed_answer": [f"{person} comes from Oslo."],
        }
        for person in PEOPLE[:3]
    ]
    write("forget10", forget)
    write("forget10_perturbed", [a | b for a, b in zip(forget, paraphrases, strict=True)])
    write("retain90", [row(person, "Oslo") for person in PEOPLE[3:]])
    write("world_facts", [{"question": "What is the capital of Norway?", "answer": "Oslo"}])
    write("real_authors", [{"question": "Who wrote the silent river?", "answer": "Ivo Kell"}])
    return directory


@pytest.fixture(autouse=True)
def open_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuring logging, as Hydra does, closes absl's handler and with it a captured stderr."""
    monkeypatch.setattr(absl.logging.PythonHandler, "close", lambda self: None)


@pytest.fixture
def x64():
    """Double precision within a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile with few optimisations. Compilation takes most of the time of such a test."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=["kernels", "XLA"])
def native(request, monkeypatch):
    """Run the test with the C++ kernels, then with XLA's operations alone."""
    if request.param == "XLA":
        monkeypatch.setattr(native_kernels, "available", lambda: False)
    elif "native" not in current_target(jnp.float32).kernels:
        pytest.skip("needs CPUs and a C++ compiler")
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
