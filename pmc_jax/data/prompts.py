"""Questions and answers to token ids and back: tokenizers, chat and plain templates."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmc_jax.errors import UserError
from pmc_jax.settings import free_text, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Stands for the question and the answer where only what surrounds them matters.
PROBE = "Q"
# The Llama 3 templates' own default. Without one they print today's date, and a run
# would depend on the day on which it is continued.
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
    """

    template: str = one_of("auto", "auto", "chat", "plain")
    system: str | None = free_text(None)
    date_string: str | None = None
    question: str = free_text("Question: {question}\nAnswer:")
    answer: str = free_text(" {answer}")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, fast or sentencepiece; never remote code.

    Raises:
        UserError: when the directory has none, or one that cannot be read faithfully.
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
    """A directory with `tokenizer.model` only, checked against sentencepiece itself.

    transformers 5 leaves out the BOS unless told otherwise, and where no tokenizer class
    is named it takes a generic one that reads the pieces differently.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    reference = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    config_file = directory / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.is_file() else {}
    settings = {"add_bos_token": config.get("add_bos_token", True)}
    tokenizer = _auto_tokenizer(directory, **settings)
    if type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer = LlamaTokenizer.from_pretrained(directory, local_files_only=True, **settings)
    pieces = (reference.id_to_piece(i) for i in range(reference.get_piece_size()))
    words = [piece[1:] for piece in pieces if piece[:1] == "▁" and piece[1:].isalpha()]
    text = " ".join(words[:: 1 + len(words) // 200])
    if tokenizer(text, add_special_tokens=False).input_ids != reference.encode(text):
        raise UserError(
            f"{directory}: transformers reads tokenizer.model as {type(tokenizer).__name__}, which "
            "does not tokenize as sentencepiece does; expected a tokenizer.json beside it"
        )
    return tokenizer


def make_template(
    tokenizer: PreTrainedTokenizerBase, cfg: PromptConfig, eos_token_ids: Collection[int] = ()
) -> PromptTemplate:
    """The prompt template for a tokenizer.

    Args:
        eos_token_ids: further ids that end a response (from the generation config).

    Raises:
        UserError: for an impossible configuration, or when nothing ends a response.
    """
    if cfg.template not in ("auto", "chat", "plain"):
        raise UserError(f"prompt.template={cfg.template}: expected auto, chat or plain")
    chat = cfg.template == "chat" or (cfg.template == "auto" and bool(tokenizer.chat_template))
    if chat and not tokenizer.chat_template:
        raise UserError(
            "prompt.template=chat: the tokenizer has no chat template; use prompt.template=plain"
        )
    for name in ("question", "answer"):
        pattern = getattr(cfg, name)
        if not chat and pattern.count(f"{{{name}}}") != 1:
            raise UserError(f"prompt.{name}={pattern!r}: must hold {{{name}}} once")
        if not chat and "\\n" in pattern:
            logger.warning(
                "prompt.%s holds a backslash and an n, which are no line break; in bash, "
                "$'prompt.%s=…\\n…' has one",
                name, name,
            )  # fmt: skip
    return PromptTemplate(tokenizer, cfg, chat, tuple(eos_token_ids))


@lru_cache(maxsize=1 << 15)
def _decoded(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """The text of tokens but special ones. Many samples are alike, and all are read twice."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """Encodes prompts and answers so that prompt ids + answer ids are the whole text's ids."""

    tokenizer: PreTrainedTokenizerBase
    cfg: PromptConfig
    chat: bool
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _ = self.end_id  # renders the chat template once, so that errors come early

    def encode_prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids up to where the response begins; one BOS if tokenizer or chat template has one."""
        ids = self._ids(self._prompt_text(question, system))
        bos = self.tokenizer.bos_token_id
        if bos is None or not (self._adds_bos or ids[:1] == [bos]):
            return ids
        while ids[:1] == [bos]:
            ids = ids[1:]
        return [bos, *ids]

    def encode_answer(self, answer: str) -> list[int]:
        """Ids of a response that gives this answer, with the id that ends it."""
        if not self.chat:
            text = self._probe_prompt + self.cfg.answer.replace("{answer}", answer)
            return [*self._response_ids(text), self.end_id]
        ids = self._response_ids(self._render(PROBE, None, answer))
        while ids and ids[-1] != self.end_id and self.end_id in ids:
            ids.pop()  # what the template puts after the end of a turn, such as a newline
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def encode_prefix(self, text: str) -> list[int]:
        """Ids that a response begins with when its answer begins with `text`."""
        if self.chat:
            return self._response_ids(self._render(PROBE, None, text, unfinished=True))
        before = self.cfg.answer.partition("{answer}")[0]
        return self._response_ids(self._probe_prompt + before + text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer in a response: up to its end, no special tokens, no answer tag, stripped."""
        ids = list(token_ids)
        end = next((i for i, token in enumerate(ids) if token in self._stops), len(ids))
        text = self._text(ids[:end])
        if text.strip() == self._answer_tag.strip():
            return ""
        return text.lstrip().removeprefix(self._answer_tag).strip()

    def decode_settled(self, token_ids: Sequence[int]) -> str:
        """What the answer in a response begins with, however the response goes on.

        `token_ids` hold no stop token. Left out is what later tokens may change: bytes of a
        character that is not complete, and a text that may yet turn out to be the answer tag.
        Spaces at its end stay, since they complete a word.
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
        """The id that ends a trained response: the chat template's end of turn, else EOS."""
        if self.chat:
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
        """Ids of sentencepiece's single bytes, which are read as characters all together."""
        vocabulary = self.tokenizer.get_vocab()
        found = (vocabulary.get(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in found if token is not None)

    @cached_property
    def _answer_tag(self) -> str:
        """The text that comes before an answer in a response of the plain template."""
        return "" if self.chat else self.cfg.answer.partition("{answer}")[0].lstrip()

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

    def _response_ids(self, text: str) -> list[int]:
        """Ids that follow the probe prompt in `text`.

        Encoded together with the prompt, since some tokenizers (sentencepiece) treat the
        beginning of a text specially; alone only where a token would cross the boundary.
        """
        ids, prompt = self._ids(text), self._probe_ids
        if ids[: len(prompt)] == prompt:
            return ids[len(prompt) :]
        if not text.startswith(self._probe_prompt):
            raise UserError(
                "the tokenizer's chat template renders a prompt that its conversations do not "
                "begin with; use prompt.template=plain"
            )
        return self._ids(text.removeprefix(self._probe_prompt))

    def _prompt_text(self, question: str, system: str | None) -> str:
        if self.chat:
            return self._render(question, system)
        system = self.cfg.system if system is None else system
        prompt = self.cfg.question.replace("{question}", question)
        return f"{system}\n\n{prompt}" if system else prompt

    def _render(
        self,
        question: str,
        system: str | None,
        answer: str | None = None,
        unfinished: bool = False,
    ) -> str:
        """The chat template's text of a prompt, or of a whole conversation."""
        system = self.cfg.system if system is None else system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            # `enable_thinking`: templates of reasoning models then open no chain of thought.
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=answer is None,
                continue_final_message=unfinished,
                date_string=self.cfg.date_string or DATE_STRING,
                enable_thinking=False,
            )
            return str(text)
        except Exception as e:  # jinja errors, and whatever a template raises
            reason = " ".join(str(e).split())[:300]
            raise UserError(f"the tokenizer's chat template fails: {reason}") from e


def check_lengths(
    name: str, ids: Sequence[int], prompts: Sequence[Sequence[int]], max_length: int
) -> None:
    """Check before a run that every prompt leaves room for one response token and the end token.

    Args:
        name: what the rows are, for the message ("forget", "retain", …).
        ids: row numbers, one a prompt.

    Raises:
        UserError: naming the first row that is too long, its length and the limit.
    """
    for row_id, prompt in zip(ids, prompts, strict=True):
        if len(prompt) + 2 > max_length:
            raise UserError(
                f"{name} row {row_id}: the prompt has {len(prompt)} tokens; prompt, response and "
                f"end token together may have max_length={max_length}"
            )
