"""Prompt templates: from questions and answers to token ids, and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from pmc_jax.data.files import to_json
from pmc_jax.data.prompt_config import DEFAULT_PROMPT, PromptConfig, check_patterns, origin_of
from pmc_jax.data.special_tokens import GUARD, SpecialTokens
from pmc_jax.data.tokenizer import is_of_library
from pmc_jax.errors import UserError
from pmc_jax.runtime.timing import memory_limit, time_limit
from pmc_jax.terminal import escaped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# A stand-in for question and answer, used to find the text around them.
PROBE = "Q"

DATE_FORMAT = "%d %b %Y"
STRFTIME_CODES = [f"%{pad}{code}" for pad in ("-", "") for code in "aAwdbBmyYHIpMSfjUWcxXeF"]
"""Parts of a date as templates ask for them; "%-d" is a day without zero."""

LONGEST_TEMPLATE = 10**6
"""Characters of a chat template, and of what it puts around a conversation."""

RENDER_SECONDS = 5.0
RENDER_BYTES = 5 * 10**8
"""The time that rendering one conversation may take, and the memory when a template is loaded."""

LEFT_OUT = "the tokenizer's chat template leaves out the {}"


def prompt_facts(template: PromptTemplate) -> dict[str, str]:
    """What is recorded of the prompt that a model was asked with."""
    return {
        "prompt": template.words,
        "prompt_from": template.origin,
        "prompt_text": template.text,
    }


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
    `preprocess_chat_instance`. The plain prompt includes what precedes the answer, such as a
    space. A prompt and its answer are encoded together, and the answer is what follows as many
    ids as the prompt has. It extends to the end of the chat template, and to EOS.

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
        question, answer = "the probe question", "the probe answer"
        if self.chat:  # errors come early, and a hostile template takes no memory
            with memory_limit(RENDER_BYTES):
                prompt, whole = self._render(question, None), self._render(question, None, answer)
            if question not in prompt:
                raise UserError(f"{LEFT_OUT.format('question')}: all prompts would be the same")
            if answer not in whole:
                raise UserError(f"{LEFT_OUT.format('answer')}: nothing could be learnt from it")
        _ = self.end_id

    def __str__(self) -> str:
        """The prompt in words and where it comes from, on one line."""
        return f"{self.words} ({self.origin})"

    @property
    def words(self) -> str:
        """The prompt in words, on one line: `chat template, date 26 Jul 2024`."""
        parts = ["chat template"]
        if not self.chat:
            pattern = f"{self.config.question}{self.config.answer}"
            parts = [f"plain, {escaped(to_json(pattern))}"]
        if self.config.system:
            parts.append(f"system prompt {escaped(to_json(self.config.system))}")
        if self.uses_date:
            parts.append(f"date {escaped(str(self.config.date_string))}")
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
        system = None if system is None else self.special.guarded(system)
        return self._prompt_ids(self._prompt_text(self.special.guarded(question), system))

    def encode_opening(self, words: str = "") -> list[int]:
        """The ids of a prompt up to the first words of its question."""
        before = self._around_question[0]
        text = before + self.special.guarded(words)
        return self._prompt_ids(text if words else before.rstrip(" "))

    def encode_pair(
        self, question: str, answer: str, system: str | None = None
    ) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of its answer, end token included, to train on or to score."""
        prompt = self.encode_prompt(question, system)
        if not self._as_openunlearning:
            return prompt, self.encode_answer(answer)
        question, answer = self.special.guarded(question), self.special.guarded(answer)
        system = None if system is None else self.special.guarded(system)
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
        answer = self.special.guarded(answer)
        if not self.chat:
            text = self._probe_prompt + self._pattern("answer").replace("{answer}", answer)
            return [*self._response_ids(text), self.end_id]
        ids = self._response_ids(self._render(PROBE, None, answer))
        while ids and ids[-1] != self.end_id and self.end_id in ids:
            ids.pop()  # what the template puts after the end of a turn, such as a newline
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def encode_prefix(self, text: str) -> list[int]:
        """The first ids of a response whose answer begins with `text`."""
        text = self.special.guarded(text)
        if self.chat:
            return self._response_ids(self._render(PROBE, None, text, unfinished=True))
        before = "" if self._as_openunlearning else self._before_answer
        return self._response_ids(self._probe_prompt + before + text)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text by itself, with what the tokenizer adds, such as BOS."""
        return self._ids_with_added(self.special.guarded(text))

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

    def decode_question(self, token_ids: Sequence[int]) -> str | None:
        """The question in a prompt without a system prompt of its own; None if it does not end.

        It ends at a special token, at a line break, or at the text that follows the question.
        """
        ids, opening = list(token_ids), self.encode_opening()
        if ids[: len(opening)] != opening:
            return None
        rest = ids[len(opening) :]
        ends_at = self._stops | self.special.ids
        stop = next((i for i, token in enumerate(rest) if token in ends_at), len(rest))
        text = self._text([*opening, *rest[:stop]]).removeprefix(self._text(opening)).lstrip()
        ends = [i for mark in ("\n", self._around_question[1].strip()) if mark
                if (i := text.find(mark)) >= 0]  # fmt: skip
        if stop == len(rest) and not ends:
            return None
        return text[: min(ends, default=len(text))].strip() or None

    def decode_settled(self, token_ids: Sequence[int]) -> str:
        """The beginning of the answer that no later token can change.

        `token_ids` contain no stop token. The bytes of an incomplete character are left out,
        and so is text that may still become the answer tag. Spaces at the end are kept, since
        they complete a word.
        """
        ids = list(token_ids)
        while ids and (ids[-1] in self._byte_ids or ids[-1] in self.special.ids):
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
            ends = [token for token in self._ids(tail) if token in self.special.ids]
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
    def special(self) -> SpecialTokens:
        """The special tokens, which texts can spell out."""
        return SpecialTokens(self.tokenizer)

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
        return self.special.guarded(str(self.config.system))

    @cached_property
    def _around_question(self) -> tuple[str, str]:
        """The text of a prompt before its question, and what follows it."""
        question = "the probe question"
        before, _, after = self._prompt_text(question, None).partition(question)
        return before, after

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
            return self.special.encode(text)
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt's text, with one BOS if there is any."""
        if self._as_openunlearning:
            return self._openunlearning_ids(text)
        ids, bos = self._ids(text), self.tokenizer.bos_token_id
        if bos is None or not (self._adds_bos or ids[:1] == [bos]):
            return ids
        while ids[:1] == [bos]:
            ids = ids[1:]
        return [bos, *ids]

    def _openunlearning_ids(self, text: str) -> list[int]:
        """The ids of a text; of a plain one with what the tokenizer adds, such as BOS."""
        return self._ids(text) if self.chat else self._ids_with_added(text)

    def _ids_with_added(self, text: str) -> list[int]:
        if GUARD in text:
            before, after = self._added
            return [*before, *self.special.encode(text), *after]
        return self.tokenizer(text, verbose=False).input_ids

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds before and after a text."""
        bare, whole = self._ids(PROBE), self.tokenizer(PROBE).input_ids
        first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:first], whole[first + len(bare) :]

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
            with time_limit(RENDER_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=answer is None,
                    continue_final_message=unfinished,
                    date_string=self.config.date_string,
                    chat_template=self._chat_template,
                    **thinking,
                )
        except UserError:
            raise
        except Exception as e:  # jinja errors, and whatever a template raises
            reason = " ".join(str(e).split())[:300] or type(e).__name__
            raise UserError(f"the tokenizer's chat template fails: {reason}") from e
        given = sum(len(message["content"]) for message in messages)
        if len(text) > LONGEST_TEMPLATE + 10 * given:
            raise UserError(
                f"the tokenizer's chat template renders {len(text):,} characters for a "
                f"conversation of {given:,}; use prompt.template=plain"
            )
        return str(text)

    @cached_property
    def _chat_template(self) -> str:
        """The chat template, in which `strftime_now` gives the prompt's date and not today's.

        Transformers passes no functions to templates, so a macro takes its place.
        """
        template = str(self.tokenizer.get_chat_template())
        if len(template) > LONGEST_TEMPLATE:
            raise UserError(
                f"the tokenizer's chat template has {len(template):,} characters; expected at most "
                f"{LONGEST_TEMPLATE:,}"
            )
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


def check_texts(template: PromptTemplate, vocab_size: int) -> None:
    """Check that the tokens of a few words tell them apart, and that the model has them.

    Raises:
        UserError: for a tokenizer that fails, drops the text, or is that of another model.
    """
    try:
        prompt, answer = template.encode_pair("the probe question", "the probe answer")
        other, another = template.encode_pair(PROBE, PROBE)
        text = template.decode(answer)
    except UserError:
        raise
    except BaseException as error:
        if not is_of_library(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the tokenizer fails on a few words: {reason}") from error
    if prompt == other or answer == another or not text:
        raise UserError("the tokenizer gives different texts the same tokens, or none")
    for token in (*template.stop_ids, *prompt, *answer):
        if token >= vocab_size:
            raise UserError(
                f"the tokenizer gives token id {token}, but the model's vocabulary has "
                f"{vocab_size} tokens; expected those of one model"
            )


def check_lengths(places: Sequence[str], prompts: Sequence[Sequence[int]], max_length: int) -> None:
    """Check that every prompt leaves room for one response token and the end token.

    Args:
        places: where the row of each prompt came from, for the error.

    Raises:
        UserError: naming the first prompt that is too long, its length and the limit.
    """
    for place, prompt in zip(places, prompts, strict=True):
        if len(prompt) + 2 > max_length:
            raise UserError(
                f"{place}: the prompt has {len(prompt)} tokens; expected at most "
                f"max_length={max_length} with a response token and the end token"
            )
