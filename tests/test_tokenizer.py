"""Tokenizers whose class would change what `tokenizer.json` says."""

import logging

import pytest
from conftest import bpe_tokenizer, edit
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from pmc_jax.assets import WORLD_MODEL
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.tokenizer import TEXTS, as_in_file, load_tokenizer

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


def test_the_bundled_tokenizer_is_as_in_its_file(caplog):
    loaded = AutoTokenizer.from_pretrained(WORLD_MODEL)
    assert as_in_file(loaded, WORLD_MODEL) is loaded
    assert not caplog.records
