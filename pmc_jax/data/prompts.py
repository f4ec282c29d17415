"""Tokenizers and prompt templates: from questions and answers to token ids, and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError
from pmc_jax.settings import free_text, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# A stand-in for question and answer, used to find the text around them.
PROBE = "Q"
# The default of the Llama 3 templates. Without a date they print today's, and a resumed run
# would have other prompts.
DATE_STRING = "26 Jul 2024"


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a question becomes a prompt.

    Attributes:
        template: "chat": the tokenizer's chat template; "plain": `question` and `answer`;
            "auto": chat if the tokenizer can.
        system: system prompt; also begins a plain prompt.
        date_string: date in some chat templates; None: 26 Jul 2024.
        question: plain prompt; must contain "{question}".
        answer: plain response; must contain "{answer}".
        format: "standard": prompt and answer are encoded apart; "openunlearning": together, and
            split, as OpenUnlearning does.
    """

    template: str = one_of("auto", "auto", "chat", "plain")
    system: str | None = free_text(None)
    date_string: str | None = None
    question: str = free_text("Question: {question}\nAnswer:")
    answer: str = free_text(" {answer}")
    format: str = one_of("standard", "standard", "openunlearning")


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
        return _auto_tokenizer(directory)
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
    tokenizer: PreTrainedTokenizerBase, config: PromptConfig, eos_token_ids: Collection[int] = ()
) -> PromptTemplate:
    """The prompt template for a tokenizer.

    Args:
        eos_token_ids: further ids that end a response, from the generation config.

    Raises:
        UserError: if the configuration is invalid, or no token ends a response.
    """
    if config.template not in ("auto", "chat", "plain"):
        raise UserError(f"prompt.template={config.template}: expected auto, chat or plain")
    chat = config.template == "chat" or (
        config.template == "auto" and bool(tokenizer.chat_template)
    )
    if chat and not tokenizer.chat_template:
        raise UserError(
            "prompt.template=chat: the tokenizer has no chat template; use prompt.template=plain"
        )
    for name in ("question", "answer"):
        pattern = getattr(config, name)
        if not chat and pattern.count(f"{{{name}}}") != 1:
            raise UserError(f"prompt.{name}={pattern!r}: must contain {{{name}}} once")
        if not chat and "\\n" in pattern:
            logger.warning(
                "prompt.%s contains a backslash and an n, not a line break; in bash, "
                "$'prompt.%s=…\\n…' contains a line break",
                name, name,
            )  # fmt: skip
    return PromptTemplate(tokenizer, config, chat, tuple(eos_token_ids))


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
        chat: whether the tokenizer's chat template is used, not the plain patterns of `config`.
        eos_token_ids: ids that end a response besides the template's own.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig
    chat: bool
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _ = self.end_id  # renders the chat template once, so that errors come early

    def encode_prompt(self, question: str, system: str | None = None) -> list[int]:
        """The ids before the response; with one BOS if the tokenizer or chat template adds any."""
        text = self._prompt_text(question, system)
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
        if self.chat:
            text = self._render(question, system, answer)
        else:
            pattern = self.config.answer.removeprefix(self._before_answer)
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
        if not self.chat:
            text = self._probe_prompt + self.config.answer.replace("{answer}", answer)
            return [*self._response_ids(text), self.end_id]
        ids = self._response_ids(self._render(PROBE, None, answer))
        while ids and ids[-1] != self.end_id and self.end_id in ids:
            ids.pop()  # what the template puts after the end of a turn, such as a newline
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def encode_prefix(self, text: str) -> list[int]:
        """The first ids of a response whose answer begins with `text`."""
        if self.chat:
            return self._response_ids(self._render(PROBE, None, text, unfinished=True))
        before = "" if self._as_openunlearning else self._before_answer
        return self._response_ids(self._probe_prompt + before + text)

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
        return self.config.answer.partition("{answer}")[0]

    def _text(self, ids: Sequence[int]) -> str:
        return _decoded(self.tokenizer, tuple(ids))

    @cached_property
    def _adds_bos(self) -> bool:
        return self.tokenizer(PROBE).input_ids[:1] == [self.tokenizer.bos_token_id]

    @cached_property
    def _probe_prompt(self) -> str:
        return self._prompt_text(PROBE, None)

    @cached_property
    def _probe_ids(self) -> list[int]:
        return self._ids(self._probe_prompt)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _openunlearning_ids(self, text: str) -> list[int]:
        """The ids of a text; of a plain one with what the tokenizer adds, such as BOS."""
        return self.tokenizer(text, add_special_tokens=not self.chat, verbose=False).input_ids

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
        system = self.config.system if system is None else system
        prompt = self.config.question.replace("{question}", question)
        if self._as_openunlearning:
            return (system or "") + prompt + self._before_answer
        return f"{system}\n\n{prompt}" if system else prompt

    def _render(
        self,
        question: str,
        system: str | None,
        answer: str | None = None,
        unfinished: bool = False,
    ) -> str:
        """The chat template's text of a prompt or, with an answer, of a conversation."""
        system = self.config.system if system is None else system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        # Without it the templates of reasoning models start a chain of thought.
        thinking = {} if self._as_openunlearning else {"enable_thinking": False}
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=answer is None,
                continue_final_message=unfinished,
                date_string=self.config.date_string or DATE_STRING,
                **thinking,
            )
            return str(text)
        except Exception as e:  # jinja errors, and whatever a template raises
            reason = " ".join(str(e).split())[:300]
            raise UserError(f"the tokenizer's chat template fails: {reason}") from e


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
