"""Tokenizers and prompt templates: from questions and answers to token ids, and back."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmc_jax.data.files import kind_of, read_object, to_json
from pmc_jax.data.tokenizer_file import as_in_file
from pmc_jax.errors import UserError
from pmc_jax.settings import check, free_text, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROMPT_FILE = "pmc_prompt.json"
"""The file of a model directory that says how the model was trained to be asked."""

# A stand-in for question and answer, used to find the text around them.
PROBE = "Q"

GUARD = "\ufdd0"
"""A noncharacter of Unicode that keeps a special token in a text from being read as one."""

DATE_FORMAT = "%d %b %Y"
STRFTIME_CODES = [f"%{pad}{code}" for pad in ("-", "") for code in "aAwdbBmyYHIpMSfjUWcxXeF"]
"""Parts of a date as templates ask for them; "%-d" is a day without zero."""

LEFT_OUT = "the tokenizer's chat template leaves out the {}"


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a question becomes a prompt. None: as the model was trained, else a default.

    Attributes:
        template: "chat": the tokenizer's chat template; "plain": `question` and `answer`;
            "auto" (the default): chat if the tokenizer can.
        system: system prompt; also begins a plain prompt. "" (the default): none.
        date_string: date in some chat templates; the default is 26 Jul 2024.
        question: plain prompt, with "{question}"; the default is "Question: {question}\\nAnswer:".
        answer: plain response, with "{answer}"; the default is " {answer}".
        format: "standard" (the default): prompt and answer are encoded apart; "openunlearning":
            together, and split, as OpenUnlearning does.
    """

    template: str | None = one_of(None, "auto", "chat", "plain")
    system: str | None = free_text(None)
    date_string: str | None = None
    question: str | None = free_text(None)
    answer: str | None = free_text(None)
    format: str | None = one_of(None, "standard", "openunlearning")

    def over(self, other: PromptConfig) -> PromptConfig:
        """These settings, and those of `other` where these say nothing."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(other, **given)


# The date is the default of the Llama 3 templates. With today's date, a run that is continued
# tomorrow would have other prompts.
DEFAULT_PROMPT = PromptConfig(
    template="auto",
    system="",
    date_string="26 Jul 2024",
    question="Question: {question}\nAnswer:",
    answer=" {answer}",
    format="standard",
)


def read_prompt(directory: Path) -> PromptConfig | None:
    """How the model in `directory` was trained to be asked; None if it does not say.

    Raises:
        UserError: if its file is not as `prompt_content` writes it.
    """
    path = directory / PROMPT_FILE
    if not path.exists():
        return None
    expected = "the prompt settings of a model"
    content = read_object(path, expected=expected)
    names = {field.name for field in dataclasses.fields(PromptConfig)}
    for key, value in content.items():
        if key not in names:
            known = ", ".join(sorted(names))
            raise UserError(f"{path}: unknown key '{key}'; expected {known}")
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path}: '{key}' is {kind_of(value)}; expected a string")
    found = PromptConfig(**content)
    try:
        check(found, "")
        if found.template != "chat":
            check_patterns(found.over(DEFAULT_PROMPT), "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def prompt_content(config: PromptConfig) -> dict[str, str]:
    """The content of a model's prompt file."""
    return dict(vars(config))


def prompt_facts(template: PromptTemplate) -> dict[str, str]:
    """What is recorded of the prompt that a model was asked with."""
    return {
        "prompt": template.words,
        "prompt_from": template.origin,
        "prompt_text": template.text,
    }


def check_patterns(config: PromptConfig, prefix: str = "prompt.") -> None:
    """Check the plain prompt and response.

    Raises:
        UserError: if one has no place, or several, for its text.
    """
    for name in ("question", "answer"):
        pattern = getattr(config, name)
        if pattern.count(f"{{{name}}}") != 1:
            raise UserError(f"{prefix}{name}={pattern!r}: must contain {{{name}}} once")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face directory, fast or sentencepiece.

    Remote code is never run.

    Raises:
        UserError: if the directory has no tokenizer, or it cannot be loaded correctly.
    """
    directory = Path(directory).expanduser()
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{directory}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)} there"
        )
    only_sentencepiece = not any(
        (directory / name).is_file() for name in TOKENIZER_FILES if name != "tokenizer.model"
    )
    try:
        if only_sentencepiece:
            return _load_sentencepiece(directory)
        return as_in_file(_auto_tokenizer(directory), directory)
    except UserError:
        raise
    except Exception as e:  # transformers and tokenizers raise plain Exceptions too
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise UserError(f"{directory}: the tokenizer cannot be loaded: {reason}") from e


def _auto_tokenizer(directory: Path, **settings: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True, **settings
    )


def _load_sentencepiece(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory with `tokenizer.model` only.

    transformers 5 adds no BOS unless `add_bos_token` is set. If no tokenizer class is named,
    it uses a generic one, which splits text differently. So the result is compared with that
    of sentencepiece.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    reference = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    config_file = directory / "tokenizer_config.json"
    config = read_object(config_file, missing_ok=True)
    settings = {"add_bos_token": config.get("add_bos_token", True)}
    tokenizer = _auto_tokenizer(directory, **settings)
    if type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer = LlamaTokenizer.from_pretrained(directory, local_files_only=True, **settings)
    pieces = (reference.id_to_piece(i) for i in range(reference.get_piece_size()))
    words = [piece[1:] for piece in pieces if piece[:1] == "▁" and piece[1:].isalpha()]
    text = " ".join(words[:: 1 + len(words) // 200])
    if tokenizer(text, add_special_tokens=False).input_ids != reference.encode(text):
        raise UserError(
            f"{directory}: transformers loads tokenizer.model as {type(tokenizer).__name__}, whose "
            "tokens differ from sentencepiece's; expected a tokenizer.json beside it"
        )
    return tokenizer


def make_template(
    tokenizer: PreTrainedTokenizerBase,
    config: PromptConfig,
    eos_token_ids: Collection[int] = (),
    own: PromptConfig | None = None,
) -> PromptTemplate:
    """The prompt template for a tokenizer.

    Args:
        config: the settings that are given; the others are the model's own, or defaults.
        eos_token_ids: further ids that end a response, from the generation config.
        own: how the model was trained to be asked, if that is known.

    Raises:
        UserError: if the configuration is invalid, the chat template leaves out the question or
            the answer, or no token ends a response.
    """
    whole = config.over((own or PromptConfig()).over(DEFAULT_PROMPT))
    if whole.template not in ("auto", "chat", "plain"):
        raise UserError(f"prompt.template={whole.template}: expected auto, chat or plain")
    chat = whole.template == "chat" or (whole.template == "auto" and bool(tokenizer.chat_template))
    if chat and not tokenizer.chat_template:
        raise UserError(
            "prompt.template=chat: the tokenizer has no chat template; use prompt.template=plain"
        )
    if not chat:
        check_patterns(whole)
        for name in ("question", "answer"):
            if "\\n" in getattr(whole, name):
                logger.warning(
                    "prompt.%s contains a backslash and an n, not a line break; in bash, "
                    "$'prompt.%s=…\\n…' contains a line break",
                    name, name,
                )  # fmt: skip
    whole = dataclasses.replace(whole, template="chat" if chat else "plain")
    return PromptTemplate(tokenizer, whole, tuple(eos_token_ids), origin_of(config, own))


def origin_of(given: PromptConfig, own: PromptConfig | None) -> str:
    """Where the prompt comes from, in words."""
    changed = [
        f"prompt.{name}"
        for name, value in vars(given).items()
        if value is not None and (own is None or value != getattr(own, name))
    ]
    if own is None:
        return "as given" if changed else "the default; the model does not say"
    return "the model's own" + (f", but {', '.join(changed)} as given" if changed else "")


@lru_cache(maxsize=1 << 15)
def _decoded(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """The text of tokens, without special tokens.

    Cached, since many samples are equal and each is decoded twice.
    """
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """Encodes prompts and answers, and decodes responses.

    The ids of a prompt and of an answer together are the ids of the whole text.

    With the format "openunlearning" the ids are those of OpenUnlearning's
    `preprocess_chat_instance`. The plain prompt includes what stands before the answer, such as a
    space. A prompt and its answer are encoded together, and the answer is what follows as many
    ids as the prompt has. It goes on to the end of the chat template, and to EOS.

    Attributes:
        config: the settings, each with a value; `template` is "chat" or "plain".
        eos_token_ids: ids that end a response besides the template's own.
        origin: where the settings come from, in words.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig
    eos_token_ids: tuple[int, ...] = ()
    origin: str = "as given"

    def __post_init__(self) -> None:
        _ = self.end_id  # renders the chat template once, so that errors come early
        question, answer = "the probe question", "the probe answer"
        if self.chat and question not in self._render(question, None):
            raise UserError(f"{LEFT_OUT.format('question')}: all prompts would be the same")
        if self.chat and answer not in self._render(question, None, answer):
            raise UserError(f"{LEFT_OUT.format('answer')}: nothing could be learnt from it")

    def __str__(self) -> str:
        """The prompt in words and where it comes from, on one line."""
        return f"{self.words} ({self.origin})"

    @property
    def words(self) -> str:
        """The prompt in words, on one line: `chat template, date 26 Jul 2024`."""
        parts = ["chat template"]
        if not self.chat:
            pattern = f"{self.config.question}{self.config.answer}"
            parts = [f"plain, {to_json(pattern)}"]
        if self.config.system:
            parts.append(f"system prompt {to_json(self.config.system)}")
        if self.uses_date:
            parts.append(f"date {self.config.date_string}")
        if self._as_openunlearning:
            parts.append("in OpenUnlearning's format")
        return ", ".join(parts)

    @property
    def text(self) -> str:
        """The text of a prompt with its answer, for the question "{question}"."""
        question, answer = "{question}", "{answer}"
        if self.chat:
            return self._render(question, None, answer)
        return self._prompt_text(question, None) + self._pattern("answer").removeprefix(
            self._before_answer if self._as_openunlearning else ""
        )

    @property
    def chat(self) -> bool:
        """Whether the tokenizer's chat template is used, not the plain patterns of `config`."""
        return self.config.template == "chat"

    @cached_property
    def uses_date(self) -> bool:
        """Whether prompts contain a date."""
        if not self.chat:
            return False
        other = dataclasses.replace(self.config, date_string="01 Jan 1970")
        return self._render(PROBE, None) != dataclasses.replace(self, config=other)._render(
            PROBE, None
        )

    def encode_prompt(self, question: str, system: str | None = None) -> list[int]:
        """The ids before the response; with one BOS if the tokenizer or chat template adds any."""
        system = None if system is None else self._guarded(system)
        text = self._prompt_text(self._guarded(question), system)
        if self._as_openunlearning:
            return self._openunlearning_ids(text)
        ids, bos = self._ids(text), self.tokenizer.bos_token_id
        if bos is None or not (self._adds_bos or ids[:1] == [bos]):
            return ids
        while ids[:1] == [bos]:
            ids = ids[1:]
        return [bos, *ids]

    def encode_pair(
        self, question: str, answer: str, system: str | None = None
    ) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of its answer, end token included, to train on or to score."""
        prompt = self.encode_prompt(question, system)
        if not self._as_openunlearning:
            return prompt, self.encode_answer(answer)
        question, answer = self._guarded(question), self._guarded(answer)
        system = None if system is None else self._guarded(system)
        if self.chat:
            text = self._render(question, system, answer)
        else:
            pattern = self._pattern("answer").removeprefix(self._before_answer)
            text = self._prompt_text(question, system) + pattern.replace("{answer}", answer)
        ids = self._openunlearning_ids(text)
        if ids[-1:] != [self.end_id]:
            ids.append(self.end_id)
        size = min(len(prompt), len(ids) - 1)  # an answer has at least its end token
        return ids[:size], ids[size:]

    def encode_answer(self, answer: str) -> list[int]:
        """The ids of a response with this answer, end token included."""
        if self._as_openunlearning:
            return self.encode_pair(PROBE, answer)[1]
        answer = self._guarded(answer)
        if not self.chat:
            text = self._probe_prompt + self._pattern("answer").replace("{answer}", answer)
            return [*self._response_ids(text), self.end_id]
        ids = self._response_ids(self._render(PROBE, None, answer))
        while ids and ids[-1] != self.end_id and self.end_id in ids:
            ids.pop()  # what the template puts after the end of a turn, such as a newline
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def encode_prefix(self, text: str) -> list[int]:
        """The first ids of a response whose answer begins with `text`."""
        text = self._guarded(text)
        if self.chat:
            return self._response_ids(self._render(PROBE, None, text, unfinished=True))
        before = "" if self._as_openunlearning else self._before_answer
        return self._response_ids(self._probe_prompt + before + text)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text by itself, with what the tokenizer adds, such as BOS."""
        return self._ids_with_added(self._guarded(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer in a response.

        That is the text before the end token, without special tokens, the answer tag and
        surrounding spaces.
        """
        ids = list(token_ids)
        end = next((i for i, token in enumerate(ids) if token in self._stops), len(ids))
        text = self._text(ids[:end])
        if text.strip() == self._answer_tag.strip():
            return ""
        return text.lstrip().removeprefix(self._answer_tag).strip()

    def decode_settled(self, token_ids: Sequence[int]) -> str:
        """The beginning of the answer that no later token can change.

        `token_ids` contain no stop token. The bytes of an incomplete character are left out,
        and so is text that may still become the answer tag. Spaces at the end are kept, since
        they complete a word.
        """
        ids = list(token_ids)
        while ids and (ids[-1] in self._byte_ids or ids[-1] in self._special):
            ids.pop()
        text = self._text(ids).rstrip("\ufffd").lstrip()
        tag = self._answer_tag
        if tag.startswith(text) or text.strip() == tag.strip():
            return ""
        return text.removeprefix(tag)

    @cached_property
    def end_id(self) -> int:
        """The id that ends a response in training: the chat template's end of turn, else EOS.

        With the format "openunlearning" it is always EOS.
        """
        if self.chat and not self._as_openunlearning:
            tail = self._render(PROBE, None, PROBE).rpartition(PROBE)[2]
            ends = [token for token in self._ids(tail) if token in self._special]
            if ends:
                return ends[0]
        if self.tokenizer.eos_token_id is not None:
            return self.tokenizer.eos_token_id
        if self.eos_token_ids:
            return self.eos_token_ids[0]
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in its config")

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends a response, `end_id` first."""
        eos = self.tokenizer.eos_token_id
        others = {*self.eos_token_ids, *([] if eos is None else [eos])} - {self.end_id}
        return (self.end_id, *sorted(others))

    @cached_property
    def _stops(self) -> frozenset[int]:
        return frozenset(self.stop_ids)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids of tokens that are not text."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset({*self.tokenizer.all_special_ids, *(i for i, t in added if t.special)})

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """Ids of sentencepiece's byte tokens, several of which can form one character."""
        vocabulary = self.tokenizer.get_vocab()
        found = (vocabulary.get(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in found if token is not None)

    @cached_property
    def _answer_tag(self) -> str:
        """The plain template's text before the answer in a response."""
        return "" if self.chat or self._as_openunlearning else self._before_answer.lstrip()

    @property
    def _as_openunlearning(self) -> bool:
        return self.config.format == "openunlearning"

    @property
    def _before_answer(self) -> str:
        """What the plain pattern has before the answer."""
        return self._pattern("answer").partition("{answer}")[0]

    def _text(self, ids: Sequence[int]) -> str:
        return _decoded(self.tokenizer, tuple(ids))

    @cached_property
    def _adds_bos(self) -> bool:
        return self.tokenizer(PROBE).input_ids[:1] == [self.tokenizer.bos_token_id]

    @cached_property
    def _system(self) -> str:
        return self._guarded(str(self.config.system))

    @cached_property
    def _probe_prompt(self) -> str:
        return self._prompt_text(PROBE, None)

    @cached_property
    def _probe_ids(self) -> list[int]:
        return self._ids(self._probe_prompt)

    def _pattern(self, name: str) -> str:
        return str(getattr(self.config, name))

    def _ids(self, text: str) -> list[int]:
        if GUARD in text:
            return self._guarded_ids(text)
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _openunlearning_ids(self, text: str) -> list[int]:
        """The ids of a text; of a plain one with what the tokenizer adds, such as BOS."""
        return self._ids(text) if self.chat else self._ids_with_added(text)

    def _ids_with_added(self, text: str) -> list[int]:
        if GUARD in text:
            before, after = self._added
            return [*before, *self._guarded_ids(text), *after]
        return self.tokenizer(text, verbose=False).input_ids

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds before and after a text."""
        bare, whole = self._ids(PROBE), self.tokenizer(PROBE).input_ids
        first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:first], whole[first + len(bare) :]

    @cached_property
    def _special_texts(self) -> Mapping[str, int]:
        """The ids of special tokens by the texts that stand for them, the longest first."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.items()
        found = {str(token.content): i for i, token in added if token.special}
        found |= zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        return {text: found[text] for text in sorted(found, key=len, reverse=True) if text}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special_texts)) or "(?!)")

    def special_in(self, text: str) -> list[str]:
        """The special tokens that a question or an answer spells out."""
        return list(dict.fromkeys(self._special_pattern.findall(text)))

    def _guarded(self, text: str) -> str:
        """`text` with a guard in every special token, which is then encoded as plain text."""
        if GUARD in text:
            raise UserError(f"a text contains {GUARD!r}, which is no character of Unicode")
        return self._special_pattern.sub(lambda found: found[0][0] + GUARD + found[0][1:], text)

    def _guarded_ids(self, text: str) -> list[int]:
        """The ids of a text in which guarded special tokens are plain text.

        The text is encoded in pieces, between its own special tokens. The same text with the
        guarded ones broken shows whether the pieces have the ids that they have in the whole.

        Raises:
            UserError: if they have not.
        """
        broken = re.sub(f".{GUARD}", "", text, flags=re.DOTALL)
        whole = self._ids(broken)
        for before in ("", "\n"):  # sentencepiece treats the beginning of a text specially
            if self._pieces_ids(broken, before) == whole:
                return self._pieces_ids(text, before)
        raise UserError(
            f"a text contains {self.special_in(text.replace(GUARD, ''))[0]}, which this tokenizer "
            "reads as a special token and cannot encode as plain text"
        )

    def _pieces_ids(self, text: str, before: str) -> list[int]:
        """The ids of a text in pieces; all but the first are encoded after `before`."""

        def plain(piece: str) -> list[int]:
            return self.tokenizer(
                piece, add_special_tokens=False, split_special_tokens=True, verbose=False
            ).input_ids

        ids: list[int] = []
        first = 0
        for found in [*self._special_pattern.finditer(text), None]:
            piece = text[first : found.start() if found else len(text)].replace(GUARD, "")
            if piece:
                start = before if first else ""
                ids += plain(start + piece)[len(plain(start)) if start else 0 :]
            if found:
                ids.append(self._special_texts[found[0]])
                first = found.end()
        return ids

    def _response_ids(self, text: str) -> list[int]:
        """The ids after the probe prompt in `text`.

        The response is encoded together with the prompt, since some tokenizers (sentencepiece)
        treat the beginning of a text specially. It is encoded alone only if a token would
        cross the boundary.
        """
        ids, prompt = self._ids(text), self._probe_ids
        if ids[: len(prompt)] == prompt:
            return ids[len(prompt) :]
        if not text.startswith(self._probe_prompt):
            raise UserError(
                "the tokenizer's chat template renders conversations that do not begin with its "
                "prompt; use prompt.template=plain"
            )
        return self._ids(text.removeprefix(self._probe_prompt))

    def _prompt_text(self, question: str, system: str | None) -> str:
        if self.chat:
            return self._render(question, system)
        system = self._system if system is None else system
        prompt = self._pattern("question").replace("{question}", question)
        if self._as_openunlearning:
            return system + prompt + self._before_answer
        return f"{system}\n\n{prompt}" if system else prompt

    def _render(
        self,
        question: str,
        system: str | None,
        answer: str | None = None,
        unfinished: bool = False,
    ) -> str:
        """The chat template's text of a prompt or, with an answer, of a conversation.

        The texts are guarded.
        """
        system = self._system if system is None else system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        # Without it the templates of reasoning models start a chain of thought.
        thinking: dict[str, Any] = {} if self._as_openunlearning else {"enable_thinking": False}
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=answer is None,
                continue_final_message=unfinished,
                date_string=self.config.date_string,
                chat_template=self._chat_template,
                **thinking,
            )
            return str(text)
        except UserError:
            raise
        except Exception as e:  # jinja errors, and whatever a template raises
            reason = " ".join(str(e).split())[:300]
            raise UserError(f"the tokenizer's chat template fails: {reason}") from e

    @cached_property
    def _chat_template(self) -> str:
        """The chat template, in which `strftime_now` gives the prompt's date and not today's.

        Transformers passes no functions to templates, so a macro takes its place.
        """
        template = str(self.tokenizer.get_chat_template())
        if "strftime_now" not in template:
            return template
        text = str(self.config.date_string)
        try:
            date = datetime.strptime(text, DATE_FORMAT)
        except ValueError:
            raise UserError(
                f"prompt.date_string={text}: the chat template formats the date; expected one such "
                f"as {DEFAULT_PROMPT.date_string}"
            ) from None
        formatted = "".join(
            f" | replace({code!r}, {date.strftime(code)!r})" for code in STRFTIME_CODES
        )
        # The empty expression keeps a line break that the template may begin with.
        return (
            "{%- macro strftime_now(format) -%}{{ format"
            + formatted
            + " }}{%- endmacro %}{{ '' }}"
            + template
        )


def check_lengths(
    name: str, ids: Sequence[int], prompts: Sequence[Sequence[int]], max_length: int
) -> None:
    """Check that every prompt leaves room for one response token and the end token.

    Args:
        name: the name of the prompts' set, for the error: "forget", "retain", ….
        ids: the row number of each prompt.

    Raises:
        UserError: naming the first prompt that is too long, its length and the limit.
    """
    for row_id, prompt in zip(ids, prompts, strict=True):
        if len(prompt) + 2 > max_length:
            raise UserError(
                f"{name} row {row_id}: the prompt has {len(prompt)} tokens; expected at most "
                f"max_length={max_length} with a response token and the end token"
            )
