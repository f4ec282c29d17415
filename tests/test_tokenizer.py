"""Tokenizers whose class would change what `tokenizer.json` says."""

import logging
import resource
import shutil
import signal

import pytest
from conftest import bpe_tokenizer, edit
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from pmc_jax.assets import WORLD_MODEL
from pmc_jax.data import prompts
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.tokenizer import TEXTS, as_in_file, load_tokenizer
from pmc_jax.errors import UserError
from pmc_jax.language_model import ModelSource, describe
from pmc_jax.runtime.timing import time_limit

DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)


def write(directory, name, normalizer=None, pre_tokenizer=None, **changes):
    """A byte-level tokenizer under the name of a class, with parts of its own."""
    tokenizer = bpe_tokenizer()
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save_pretrained(directory)
    edit(directory / "tokenizer_config.json", tokenizer_class=name, **changes)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def assert_as_in_file(found, raw):
    for text in TEXTS:
        assert found(text, add_special_tokens=False).input_ids == (
            raw.encode(text, add_special_tokens=False).ids
        )


LOST = {
    "Qwen2Tokenizer": "pre-tokenizer",
    "GPT2Tokenizer": "normalizer",
    "GemmaTokenizer": "decoder",
}


@pytest.mark.parametrize("name", LOST)
def test_the_file_wins_over_the_class_and_the_loss_is_named(tmp_path, caplog, name):
    raw = write(tmp_path, name, normalizers.Lowercase(), DIGITS)
    assert as_in_file(AutoTokenizer.from_pretrained(tmp_path), tmp_path) is not None
    caplog.clear()
    with caplog.at_level(logging.WARNING, "pmc_jax"):
        found = load_tokenizer(tmp_path)
    assert_as_in_file(found, raw)
    [message] = [record.getMessage() for record in caplog.records]
    assert f"loads it as {name}, which changes " in message and LOST[name] in message
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")
    template = make_template(found, PromptConfig(template="plain"))
    assert template.encode_prompt("Who?")[0] == found.bos_token_id
    assert template.decode(template.encode_answer("ü 1942 x")) == "ü 1942 x"


@pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_tokenizer_that_keeps_the_file_is_left_as_it_is(tmp_path, caplog, name):
    raw = write(tmp_path, name, normalizers.Lowercase(), DIGITS)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert as_in_file(loaded, tmp_path) is loaded
    assert_as_in_file(loaded, raw)
    assert not [r for r in caplog.records if r.name.startswith("pmc_jax")]


def test_tokens_and_ends_of_the_configuration_are_no_loss(tmp_path):
    write(tmp_path, "PreTrainedTokenizerFast", extra_special_tokens=["<|mark|>"])
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded("<|mark|>", add_special_tokens=False).input_ids) == 1
    assert as_in_file(loaded, tmp_path) is loaded


def bundled(directory, name, **changes):
    """The bundled tokenizer with changes of one file, as a model's template."""
    for path in WORLD_MODEL.glob("*.json"):
        shutil.copy(path, directory)
    edit(directory / name, **changes)
    return describe(ModelSource(path=str(directory)), PromptConfig())


def processor(*single, ids=(0,)):
    """A post-processor that puts tokens around a text."""
    parts = [{"SpecialToken": {"id": name, "type_id": 0}} for name in single]
    special = {name: {"id": name, "ids": list(ids), "tokens": [name]} for name in single}
    return {"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": special}


LOOP = "{% for i in range(99999) %}"
BROKEN = {
    "a post-processor that drops the text": (
        "tokenizer.json", {"post_processor": processor()}, "different texts the same tokens",
    ),
    "a post-processor of another kind": (
        "tokenizer.json", {"post_processor": {"type": "Nope"}}, "tokenizer cannot be loaded: ",
    ),
    "a post-processor that is a number": (
        "tokenizer.json", {"post_processor": 5}, "tokenizer cannot be loaded: ",
    ),
    "a special token that is a list": (
        "tokenizer_config.json", {"bos_token": ["<s>"]}, "tokenizer cannot be loaded: ",
    ),
    "a template without end": (
        "tokenizer_config.json", {"chat_template": LOOP * 4 + "{% endfor %}" * 4},
        "chat template fails: takes more than",
    ),
    "a template that calls itself": (
        "tokenizer_config.json",
        {"chat_template": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"},
        "chat template fails: maximum recursion depth",
    ),
    "a template that needs too much memory": (
        "tokenizer_config.json", {"chat_template": "{{ 'x' * 10**11 }}"},
        "chat template fails: MemoryError",
    ),
    "a template that needs much memory": (
        "tokenizer_config.json", {"chat_template": "{{ 'x' * 10**9 }}"},
        "chat template fails: MemoryError",
    ),
    "a template that doubles a text": (
        "tokenizer_config.json",
        {"chat_template": "{% set n = namespace(x='x') %}{% for i in range(60) %}"
         "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"},
        "chat template fails: (MemoryError|takes more than)",
    ),
    "a long template": (
        "tokenizer_config.json", {"chat_template": "x" * 10**7},
        "chat template has 10,000,000 characters; expected at most",
    ),
    "a template with a long output": (
        "tokenizer_config.json", {"chat_template": "{{ messages[0].content * 100000 }}"},
        "chat template renders [0-9,]+ characters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_one_line_within_seconds(tmp_path, name, monkeypatch):
    monkeypatch.setattr(prompts, "RENDER_SECONDS", 1.0)
    file, changes, message = BROKEN[name]
    with pytest.raises(UserError, match=message) as error:
        bundled(tmp_path, file, **changes)
    assert "\n" not in str(error.value)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_limit_of_time_ends_with_the_one_around_it():
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"more than 0\.1 s"), time_limit(0.1):
        with time_limit(50):
            pass
        while True:
            pass
    with pytest.raises(TimeoutError), time_limit(0.1), time_limit(50):
        while True:
            pass
    assert signal.getsignal(signal.SIGALRM) is handler


def test_the_bundled_tokenizer_is_as_in_its_file(caplog):
    loaded = AutoTokenizer.from_pretrained(WORLD_MODEL)
    assert as_in_file(loaded, WORLD_MODEL) is loaded
    assert not caplog.records
