"""What OpenUnlearning asks, trains on and scores, restated with transformers alone."""

import importlib

import jax
import numpy as np
import pytest
from test_prompts import (
    ANSWERS,
    CHATS,
    CORPUS,
    QUESTIONS,
    byte_level_bpe,
    family_tokenizer,
    sentencepiece_model,
)

from pmc_jax.data.batches import loss_rows, train_sequence
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.data.tokenizer import load_tokenizer
from pmc_jax.decoding import Sampling

IGNORED = -100
TAGS = "Question: ", "\n", "Answer: "
"""Before and after a question, and before an answer, without a chat template."""

# It reads special tokens that a text spells, such as [INST], as the tokens themselves. Here they
# are plain text.
PLAIN_TEXT = CORPUS[3].replace("[INST] ", "")


def asked_by_openunlearning(tokenizer, question, answer, system, chat):
    """(prompt to generate from, tokens, labels) of one pair.

    The labels leave out as many tokens of the conversation as the prompt alone has.
    """
    head = [{"role": "system", "content": system}] if system else []
    turns = [*head, {"role": "user", "content": question}]
    if chat:
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        turns = [*turns, {"role": "assistant", "content": answer}]
        tokens = tokenizer.apply_chat_template(turns, return_dict=False)
    else:
        text = (system or "") + TAGS[0] + question + TAGS[1] + TAGS[2]
        prompt, tokens = tokenizer(text).input_ids, tokenizer(text + answer).input_ids
    if tokens[-1] != tokenizer.eos_token_id:
        tokens = [*tokens, tokenizer.eos_token_id]
    return prompt, tokens, [IGNORED] * len(prompt) + tokens[len(prompt) :]


def tokenizer_of(name, directory):
    if name in CHATS:
        return family_tokenizer(name, directory)
    if name == "sentencepiece":
        return load_tokenizer(sentencepiece_model(directory))
    return load_tokenizer(byte_level_bpe(directory, bos=name == "llama3"))


def check_pairs(tokenizer, system, chat, config):
    template = make_template(tokenizer, config)
    merged = 0
    for question in QUESTIONS:
        for answer in [*ANSWERS, PLAIN_TEXT]:
            prompt, tokens, labels = asked_by_openunlearning(
                tokenizer, question, answer, system, chat
            )
            assert template.encode_prompt(question) == prompt
            before, own = template.encode_pair(question, answer)
            assert before + own == tokens
            row, _, scored = loss_rows([before], [own], len(tokens))
            np.testing.assert_array_equal(np.where(scored, row, IGNORED)[0], labels)
            trained = train_sequence(before, own, template.end_id, 999, template.stop_ids)
            assert trained == (before, own)
            merged += before != prompt
    return template, merged


@pytest.mark.parametrize("name", ["llama3", "phi", "sentencepiece"])
@pytest.mark.parametrize("system", [None, "Be brief.\n"])
def test_plain_prompts_include_the_answer_tag(name, system, tmp_path):
    tokenizer = tokenizer_of(name, tmp_path)
    config = PromptConfig("plain", system, format="openunlearning")
    template, merged = check_pairs(tokenizer, system, False, config)
    if name in ("phi", "sentencepiece"):  # whose tokens begin with the space before a word
        assert merged, "no token crosses the end of a prompt, so this test shows nothing"
    phi = PromptConfig(
        "plain", system, question="Question: {question}\n", answer="Answer: {answer}",
        format="openunlearning",
    )  # fmt: skip
    check_pairs(tokenizer, system, False, phi)
    assert template.stop_ids == (tokenizer.eos_token_id,)
    assert template.decode(tokenizer("Zoë Ng.", add_special_tokens=False).input_ids) == "Zoë Ng."


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chats_are_trained_to_their_very_end(name, system, tmp_path):
    tokenizer = tokenizer_of(name, tmp_path)
    config = PromptConfig("chat", system, format="openunlearning")
    template, _ = check_pairs(tokenizer, system, True, config)
    ends = template.encode_pair("Who?", "Zoë Ng.")[1]
    assert ends[-1] == template.end_id == tokenizer.eos_token_id
    standard = make_template(tokenizer, PromptConfig("chat", system))
    after = CHATS[name][3]
    assert (ends != standard.encode_answer("Zoë Ng.")) == (bool(after) or name == "qwen3")


def test_an_answer_begun_by_the_attacker(tmp_path):
    tokenizer = tokenizer_of("llama3", tmp_path)
    template = make_template(tokenizer, PromptConfig("plain", format="openunlearning"))
    begun = template.encode_prompt("Who?") + template.encode_prefix("The answer is:")
    assert tokenizer.decode(begun, skip_special_tokens=True).endswith("\nAnswer: The answer is:")
    assert begun.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("given", [None, 200])
def test_the_length_of_an_answer_does_not_depend_on_the_prompt(given, tiny_model, monkeypatch):
    """OpenUnlearning generates 200 new tokens; without a number, `max_length` is the limit."""
    limits = []

    def generated(params, prompts, **settings):
        limits.extend(settings["limits"])
        return [[[]] for _ in prompts]

    quality = importlib.import_module("pmc_jax.evaluation.quality")
    monkeypatch.setattr(quality, "generate", generated)
    rows = [("retain", EvaluationRow(i, text, None)) for i, text in enumerate(QUESTIONS)]
    quality.answers(
        tiny_model, rows, Sampling(), jax.random.key(0), max_length=90, max_new_tokens=given
    )
    lengths = [len(tiny_model.template.encode_prompt(row.question)) for _, row in rows]
    assert limits == [90 - length if given is None else given for length in lengths]
