"""Prompts against transformers' chat templates, sentencepiece and encoding of the whole text."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import check_lengths, make_template
from pmc_jax.data.tokenizer import load_tokenizer
from pmc_jax.errors import UserError

CORPUS = [
    f"Question: Who wrote the book number {i}? Answer: The author of no. {i} is Zoë Ng of Oslo, "
    f"born in {1900 + i}. Автор этой книги, 東京都の作家です. The answer is: [INST] {{x}}\n\n"
    for i in range(100)
]
QUESTIONS = [
    "Who wrote the book number 7?",
    "{question} or {answer}, {0} or {{}}?",
    "Кто автор этой книги?",
    "東京の作家は誰ですか",
    "Emoji 🙂, a\ttab\nand a new line",
    "?",
]
ANSWERS = ["Zoë Ng.", "{answer}", "Автор – Zoë", "東京都です。", "🙂", "two\n\nlines", "[x] 1,950"]

LLAMA3_CHAT = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '\\n' + message['content'] + '<|eot_id|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant\\n' }}
    {%- if enable_thinking is not defined or enable_thinking %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA2_CHAT = """{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- raise_exception('System role not supported') }}
    {%- elif message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "<|pad|>"]


def byte_level_bpe(directory: Path, *, bos: bool, chat_template: str | None = None) -> Path:
    """A tokenizer like that of Llama 3 (`bos`) or of GPT-2 and Phi, trained on CORPUS."""
    words = Regex(r"'s|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    gpt2 = Regex(r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words if bos else gpt2, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    special = SPECIAL if bos else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet),
    )
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], raw.token_to_id(SPECIAL[0]))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=special[0],
        eos_token=special[0] if not bos else "<|eot_id|>" if chat_template else special[1],
        additional_special_tokens=special,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return directory


def sentencepiece_model(directory: Path, kind: str = "bpe", **settings) -> Path:
    """A directory like the first ones of Llama 2: `tokenizer.model` and no `tokenizer.json`."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.strip() for text in CORPUS),
        model_prefix=str(directory / "tokenizer"),
        model_type=kind, vocab_size=450, byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2, **settings,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return load_tokenizer(
        byte_level_bpe(tmp_path_factory.mktemp("l3"), bos=True, chat_template=LLAMA3_CHAT)
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_tokenizer(byte_level_bpe(tmp_path_factory.mktemp("base"), bos=True))


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    return load_tokenizer(byte_level_bpe(tmp_path_factory.mktemp("phi"), bos=False))


@pytest.fixture(scope="module")
def llama2_directory(tmp_path_factory):
    return sentencepiece_model(tmp_path_factory.mktemp("l2"))


@pytest.fixture(scope="module")
def llama2(llama2_directory):
    return load_tokenizer(llama2_directory)


def chat_ids(tokenizer, *messages, **settings) -> list[int]:
    """The ids that transformers gives a conversation of (role, content) pairs."""
    conversation = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(conversation, return_dict=False, **settings)


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_llama3_chat_equals_transformers(llama3, system):
    template = make_template(llama3, PromptConfig(system=system, date_string="10 Apr 2025"))
    head = [("system", system)] if system else []
    for question in QUESTIONS:
        prompt = template.encode_prompt(question)
        settings = {"date_string": "10 Apr 2025"}
        turn = [*head, ("user", question)]
        assert prompt == chat_ids(llama3, *turn, add_generation_prompt=True, **settings)
        assert "Today Date: 10 Apr 2025" in llama3.decode(prompt)
        for answer in ANSWERS:
            whole = chat_ids(llama3, *turn, ("assistant", answer), **settings)
            assert prompt + template.encode_answer(answer) == whole
            forced = prompt + template.encode_prefix(answer)
            assert forced == chat_ids(
                llama3, *turn, ("assistant", answer), continue_final_message=True, **settings
            )
    eot = llama3.convert_tokens_to_ids("<|eot_id|>")
    assert template.end_id == eot and template.encode_answer("Zoë")[-1] == eot


def test_system_prompt_of_a_row_comes_first(llama3):
    template = make_template(llama3, PromptConfig(system="Be helpful."))
    expected = [("system", "Be brief."), ("user", "Who?")]
    assert template.encode_prompt("Who?", "Be brief.") == chat_ids(
        llama3, *expected, add_generation_prompt=True, date_string="26 Jul 2024"
    )


@pytest.mark.parametrize("name", ["llama3", "base", "phi", "llama2"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_question_is_found_in_its_prompt(name, plain, request):
    """And none where it does not end; its first words can be encoded without the rest."""
    tokenizer = request.getfixturevalue(name)
    config = PromptConfig(template="plain") if plain else PromptConfig()
    template = make_template(tokenizer, config)
    for question in (text for text in QUESTIONS if "\n" not in text):
        ids = template.encode_prompt(question)
        assert template.decode_question(ids) == question
        assert template.decode_question(ids[: len(template.encode_opening())]) is None
    ids = template.encode_prompt("Who wrote it?")
    assert template.decode_question(ids[:-1] if not template.chat else ids) == "Who wrote it?"
    begun = template.encode_opening("Who")
    assert ids[: len(begun)] == begun and len(begun) < len(ids)
    assert template.decode_question(begun) is None
    assert template.decode_question([*begun, template.end_id]) == "Who"


def test_a_question_ends_at_a_special_token_that_ends_no_response(base):
    """As with Mistral's [INST]question[/INST]answer."""
    tokenizer = copy.deepcopy(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    template = make_template(tokenizer, PromptConfig())
    prompt = template.encode_prompt("Who wrote it?")
    assert template.decode_question(prompt) == "Who wrote it?"
    assert template.decode_question([*prompt, *template.encode_answer("Bob.")]) == "Who wrote it?"


def test_a_prompt_never_holds_the_date_of_today(llama3):
    text = llama3.decode(make_template(llama3, PromptConfig()).encode_prompt("Who?"))
    assert "Today Date: 26 Jul 2024" in text


def test_text_after_the_end_of_turn_is_not_learnt(base):
    """ChatML has a newline after the end token; a sampler never reaches it."""
    base.chat_template = CHATML
    try:
        template = make_template(base, PromptConfig())
        prompt = template.encode_prompt("Who?")
        assert "<think>" not in base.decode(prompt)
        whole = chat_ids(base, ("user", "Who?"), ("assistant", "Zoë"))
        newline = base("\n", add_special_tokens=False).input_ids
        bos, eot = base.bos_token_id, base.convert_tokens_to_ids("<|eot_id|>")
        assert prompt + template.encode_answer("Zoë") + newline == [bos, *whole]
        assert template.end_id == eot
        assert template.stop_ids == (eot, base.convert_tokens_to_ids("<|end_of_text|>"))
    finally:
        base.chat_template = None


# The families' chat templates for one question and its answer. They differ in BOS, the name of the
# model's role, the end of its turn, and what follows the end.
GEMMA_CHAT = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set head = messages[0]['content'] + '\n\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set head = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (head if loop.first else '') }}
    {{- turn['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}
"""
QWEN25_CHAT = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
QWEN3_CHAT = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL_CHAT = """{{- bos_token }}
{%- set ns = namespace(head='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.head = message['content'] + '\n\n' %}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + ns.head + message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
PHI3_CHAT = """{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}
"""
CHATS = {  # template, special tokens (BOS, EOS, others), end of turn, what follows the end
    "gemma": (
        GEMMA_CHAT,
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        "\n",
    ),
    "qwen2.5": (
        QWEN25_CHAT,
        [None, "<|im_end|>", "<|im_start|>", "<|endoftext|>"],
        "<|im_end|>",
        "\n",
    ),
    "qwen3": (
        QWEN3_CHAT,
        [None, "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>"],
        "<|im_end|>",
        "\n",
    ),
    "mistral": (MISTRAL_CHAT, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>", ""),
    "phi3": (
        PHI3_CHAT,
        ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "<|end|>",
        "\n<|endoftext|>",
    ),
}


def family_tokenizer(name: str, directory: Path) -> PreTrainedTokenizerFast:
    chat, (bos, eos, *others), _, _ = CHATS[name]
    raw = Tokenizer.from_file(str(byte_level_bpe(directory, bos=True) / "tokenizer.json"))
    raw.post_processor = processors.ByteLevel()  # BOS comes from the chat template, if it has one
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=others,
    )
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(directory)
    return load_tokenizer(directory)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chats_of_the_families_equal_transformers(name, system, tmp_path):
    tokenizer = family_tokenizer(name, tmp_path)
    template = make_template(tokenizer, PromptConfig(system=system))
    end, after = CHATS[name][2:]
    assert template.end_id == tokenizer.convert_tokens_to_ids(end)
    head = [("system", system)] if system else []
    trailing = tokenizer(after, add_special_tokens=False).input_ids
    for question in QUESTIONS:
        turn = [*head, ("user", question)]
        prompt = template.encode_prompt(question)
        assert prompt == chat_ids(
            tokenizer, *turn, add_generation_prompt=True, enable_thinking=False
        )
        for answer in ANSWERS:
            whole = chat_ids(tokenizer, *turn, ("assistant", answer))
            encoded = template.encode_answer(answer)
            assert prompt + encoded + trailing == whole
            assert template.decode([*encoded, *trailing]) == answer
            assert template.encode_prefix(answer) == encoded[:-1]


def test_llama2_chat_on_sentencepiece(llama2):
    llama2.chat_template = LLAMA2_CHAT
    try:
        template = make_template(llama2, PromptConfig())
        for question in QUESTIONS:
            for answer in ANSWERS:
                whole = chat_ids(llama2, ("user", question), ("assistant", answer))
                assert template.encode_prompt(question) + template.encode_answer(answer) == whole
        assert template.end_id == llama2.eos_token_id
        with pytest.raises(UserError, match="chat template fails: System role not supported"):
            make_template(llama2, PromptConfig(system="Be brief."))
    finally:
        llama2.chat_template = None


PLAIN = [
    PromptConfig(template="plain"),
    PromptConfig(template="plain", question="Question: {question}\n", answer="Answer: {answer}"),
    PromptConfig(template="plain", system="Be brief.", question="{question}", answer="{answer}"),
]


@pytest.mark.parametrize("cfg", PLAIN)
@pytest.mark.parametrize("name", ["llama3", "phi", "llama2"])
def test_plain_parts_are_the_tokens_of_the_whole_text(name, cfg, request):
    tokenizer = request.getfixturevalue(name)
    template = make_template(tokenizer, cfg)
    cfg = template.config
    head = "Be brief.\n\n" if cfg.system else ""
    for question in QUESTIONS:
        text = head + cfg.question.replace("{question}", question)
        assert template.encode_prompt(question) == tokenizer(text).input_ids
        for answer in ANSWERS:
            response = cfg.answer.replace("{answer}", answer)
            encoded = template.encode_answer(answer)
            assert encoded == [*template.encode_prefix(answer), template.end_id]
            assert encoded[-1] == tokenizer.eos_token_id
            if cfg.answer != "{answer}":  # otherwise a token may span both parts
                whole = tokenizer(text + response).input_ids
                assert template.encode_prompt(question) + encoded[:-1] == whole
            decoded = tokenizer.decode(template.encode_prompt(question) + encoded[:-1])
            assert decoded.endswith(response)


def test_sentencepiece_ids_are_those_of_sentencepiece(llama2, llama2_directory):
    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(llama2_directory / "tokenizer.model")
    )
    template = make_template(llama2, PromptConfig())
    for question in QUESTIONS:
        for answer in ANSWERS:
            whole = reference.encode(f"Question: {question}\nAnswer: {answer}")
            ids = template.encode_prompt(question) + template.encode_answer(answer)
            assert ids == [reference.bos_id(), *whole, reference.eos_id()]


def test_exactly_one_bos(llama3, base, phi, llama2):
    cases = [(t, PromptConfig(template="plain")) for t in (llama3, base, llama2)]
    cases += [(llama3, PromptConfig(system="Hi.")), (llama3, PromptConfig(template="chat"))]
    for tokenizer, cfg in cases:
        for question in QUESTIONS:
            prompt = make_template(tokenizer, cfg).encode_prompt(question)
            assert prompt[0] == tokenizer.bos_token_id
            assert prompt.count(tokenizer.bos_token_id) == 1
    # Phi's tokenizer has a BOS token, but the model was never trained with it.
    prompt = make_template(phi, PromptConfig()).encode_prompt("Who?")
    assert phi.bos_token_id is not None and phi.bos_token_id not in prompt


@pytest.mark.parametrize("stored", [True, False])
def test_saved_bos_setting_is_kept(tmp_path, stored):
    sentencepiece_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": stored}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    prompt = make_template(load_tokenizer(tmp_path), PromptConfig()).encode_prompt("Who?")
    assert prompt.count(1) == stored


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00▁"), max_size=30
).filter(lambda text: "<" not in text)


@pytest.mark.parametrize("name", ["llama3", "phi", "llama2"])
@settings(max_examples=50)
@given(answer=texts)
def test_decode_inverts_encode(name, request, answer):
    tokenizer = request.getfixturevalue(name)
    for cfg in (PromptConfig(), PLAIN[1]):
        template = make_template(tokenizer, cfg)
        assert template.decode(template.encode_answer(answer)) == answer.strip()


@pytest.mark.parametrize("name", ["llama3", "base", "phi", "llama2"])
@pytest.mark.parametrize("chat", [None, CHATML, LLAMA2_CHAT], ids=["plain", "chatml", "llama2"])
def test_special_tokens_in_texts_are_plain_text(name, chat, request):
    """Neither a question nor an answer can open or end a turn; its text stays as it is."""
    tokenizer = request.getfixturevalue(name)
    before = tokenizer.chat_template
    tokenizer.chat_template = chat
    try:
        template = make_template(tokenizer, PromptConfig())
        special = set(tokenizer.all_special_ids)

        def marks(ids: list[int]) -> list[int]:
            return [token for token in ids if token in special]

        harmless = marks(template.encode_prompt("Who?")), marks(template.encode_answer("Zoë"))
        for token in tokenizer.all_special_tokens:
            for text in (token, f"Who is {token}, and why?", f"a{token}{token}\n{token} b"):
                prompt, answer = template.encode_pair(text, text)
                assert (marks(prompt), marks(answer)) == harmless
                assert text in tokenizer.decode(prompt)
                assert text.strip() in template.decode(answer)
                prefix = template.encode_prefix(text)
                assert answer[: len(prefix)] == prefix
                assert template.special.found_in(text) == [token]
                system = template.encode_prompt("Who?", text) if chat != LLAMA2_CHAT else prompt
                assert text in tokenizer.decode(system)
        assert template.special.found_in("Who is Zoë?") == []
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize("name", ["llama3", "base", "phi", "llama2"])
def test_special_tokens_in_plain_texts_are_split_as_transformers_splits_them(name, request):
    tokenizer = request.getfixturevalue(name)
    template = make_template(tokenizer, PromptConfig(template="plain"))
    for token in tokenizer.all_special_tokens:
        for text in (f"Who is {token}?", f"{token}", f"a{token}{token}b"):
            whole = f"Question: {text}\nAnswer: {text}"
            ids = tokenizer(whole, add_special_tokens=False, split_special_tokens=True).input_ids
            prompt, answer = template.encode_pair(text, text)
            bos = [tokenizer.bos_token_id] if name != "phi" else []
            assert prompt + answer[:-1] == [*bos, *ids]


ADDED = ["<think>", "</think>", "   ", "<table>"]
"""Added tokens that are not special, as Qwen3 (thinking), Phi-1.5 (spaces) and Gemma have them."""
WITH_ADDED = [
    "<think>Zoë</think> of Oslo", "a   b", "   ", "<think></think>", "x<table>y\n<table>",
    "Is <|eot_id|> or <think> the end?", "<think><|end_of_text|></think>   .", "< think >",
]  # fmt: skip


@pytest.fixture(scope="module", params=["llama3", "phi", "llama2"])
def with_added(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("added")
    tokenizer = copy.deepcopy(request.getfixturevalue(request.param))
    tokenizer.chat_template = None
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ADDED])
    tokenizer.save_pretrained(directory)
    return load_tokenizer(directory)


@pytest.mark.parametrize("chat", [None, CHATML], ids=["plain", "chatml"])
def test_added_tokens_that_are_not_special_are_those_of_transformers(with_added, chat):
    """They are text: read as the tokens that the model knows, and never dropped from an answer."""
    tokenizer = with_added
    ids = {tokenizer.convert_tokens_to_ids(text) for text in ADDED}
    assert not ids & set(tokenizer.all_special_ids) and not ids & set(
        make_template(tokenizer, PromptConfig()).special.ids
    )
    for system in (None, "   Be <think>."):
        if chat:
            tokenizer.chat_template = chat
        template = make_template(tokenizer, PromptConfig(system=system))
        for text in WITH_ADDED:
            prompt, answer = template.encode_pair(text, text)
            if template.chat:
                head = [("system", system)] if system else []
                turns = [*head, ("user", text), ("assistant", text)]
                whole = chat_ids(
                    tokenizer, *turns, enable_thinking=False,
                    tokenizer_kwargs={"split_special_tokens": True},
                )  # fmt: skip
            else:
                head = f"{system}\n\n" if system else ""
                whole = tokenizer(
                    f"{head}Question: {text}\nAnswer: {text}", split_special_tokens=True
                ).input_ids
            known = [token for token in whole if token in ids]
            assert [token for token in (*prompt, *answer) if token in ids] == known
            if not template.chat:
                assert [*prompt, *answer[:-1]] == whole
            own = answer[: len(template.encode_prefix(text))]  # without the end of the turn
            assert template.decode(own) == text.strip()
            settled = [template.decode_settled(own[:end]) for end in range(len(own))]
            assert all(text.lstrip().startswith(begun.rstrip()) for begun in settled)
            assert template.special.found_in(text) == [
                token for token in tokenizer.all_special_tokens if token in text
            ]


def test_special_tokens_of_the_plain_pattern_are_special(llama3):
    pattern = "<|start_header_id|>user<|end_header_id|>{question}<|eot_id|>"
    template = make_template(llama3, PromptConfig(template="plain", question=pattern))
    ids = template.encode_prompt("Is <|eot_id|> the end?")
    text = pattern.replace("{question}", "Is it the end?")
    marked = [i for i in llama3(text).input_ids if i in llama3.all_special_ids]
    assert [i for i in ids if i in llama3.all_special_ids] == marked
    assert "Is <|eot_id|> the end?" in llama3.decode(ids)


def test_decode_takes_off_the_answer_tag_only(phi):
    template = make_template(phi, PLAIN[1])

    def decode(text: str) -> str:
        return template.decode(phi(text).input_ids)

    assert decode("Answer: Zoë Ng") == "Zoë Ng"
    assert decode("\n Answer: Zoë Ng \n") == "Zoë Ng"
    assert decode("Answer: Answer: Zoë") == "Answer: Zoë"
    assert decode("Answer:") == decode(" ") == decode("") == ""
    # The published code removes the first eight characters, whatever they are.
    assert decode("The Answer: is Zoë") == "The Answer: is Zoë"
    assert decode("Answers vary") == "Answers vary"
    assert decode("Hello , world !  do n't") == "Hello , world !  do n't"


def test_decode_ends_at_any_stop_id(llama3):
    template = make_template(llama3, PromptConfig(), eos_token_ids=(2, 1))
    eot = llama3.convert_tokens_to_ids("<|eot_id|>")
    assert template.stop_ids == (eot, 1, 2)
    words = llama3(" Zoë Ng", add_special_tokens=False).input_ids
    for stop in template.stop_ids:
        assert template.decode([*words, stop, *words]) == "Zoë Ng"
    assert template.decode([llama3.bos_token_id, *words]) == "Zoë Ng"


def test_pad_and_end_ids(phi, tmp_path):
    template = make_template(phi, PromptConfig())
    assert template.end_id == phi.eos_token_id
    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    bare = PreTrainedTokenizerFast(tokenizer_object=raw)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        make_template(bare, PromptConfig())
    template = make_template(bare, PromptConfig(), eos_token_ids=(1,))
    assert (template.end_id, template.stop_ids) == (1, (1,))
    bare.pad_token = "b"
    assert make_template(bare, PromptConfig(), eos_token_ids=(1,)).end_id == 1


def test_bad_templates(llama3, phi):
    for cfg, expected in (
        (PromptConfig(template="chatml"), "prompt.template=chatml: expected auto, chat or plain"),
        (PromptConfig(template="chat"), "prompt.template=chat: the tokenizer has no chat template"),
        (
            PromptConfig(question="Q: {q}"),
            r"prompt.question='Q: {q}': must contain {question} once",
        ),
        (PromptConfig(answer="A:"), r"prompt.answer='A:': must contain {answer} once"),
    ):
        with pytest.raises(UserError, match=expected):
            make_template(phi, cfg)
    make_template(llama3, PromptConfig(question="unused in a chat"))


def test_a_line_break_that_is_none_is_told(phi, llama3, caplog):
    make_template(phi, PromptConfig())
    make_template(llama3, PromptConfig(question=r"in a chat\n"))
    assert not caplog.records
    make_template(phi, PromptConfig(question=r"Q: {question}\nA:"))
    assert "prompt.question contains a backslash and an n" in caplog.text


def test_bad_tokenizers(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: no tokenizer; expected one of tokenizer.js"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece model")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_that_would_be_misread_is_refused(tmp_path):
    sentencepiece_model(tmp_path, "unigram")
    with pytest.raises(UserError, match="tokens differ from sentencepiece's"):
        load_tokenizer(tmp_path)


def test_remote_code_is_never_run(tmp_path):
    byte_level_bpe(tmp_path, bos=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    assert not trace.exists()


def test_check_lengths_names_the_row():
    places = ["f.jsonl, line 4", "f.jsonl, line 9"]
    check_lengths(places, [[1] * 3, [1] * 6], 8)
    with pytest.raises(
        UserError, match=r"^f\.jsonl, line 9: the prompt has 7 tokens; .*max_length=8"
    ):
        check_lengths(places, [[1] * 3, [1] * 7], 8)


def test_configuration_is_a_structured_schema():
    merged = OmegaConf.merge(OmegaConf.structured(PromptConfig), {"system": "Hi."})
    assert OmegaConf.to_object(merged) == dataclasses.replace(PromptConfig(), system="Hi.")
