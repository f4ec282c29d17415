"""Texts that spell out special tokens, such as "</s>", which are encoded as plain text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pmc_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GUARD = "\ufdd0"
"""A noncharacter of Unicode that keeps a special token in a text from being read as one."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer.

    Added tokens that are not marked as special, such as runs of spaces or Qwen3's "<think>", are
    part of ordinary text, and a text that spells one gets it.
    """

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def ids(self) -> frozenset[int]:
        """Ids of tokens that are not text."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset({*self.tokenizer.all_special_ids, *(i for i, t in added if t.special)})

    @cached_property
    def texts(self) -> Mapping[str, int]:
        """The ids of special tokens by the texts that stand for them, the longest first."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.items()
        found = {str(token.content): i for i, token in added if token.special}
        found |= zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        return {text: found[text] for text in sorted(found, key=len, reverse=True) if text}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.texts)) or "(?!)")

    def found_in(self, text: str) -> list[str]:
        """The special tokens that a text spells out."""
        return list(dict.fromkeys(self._pattern.findall(text)))

    def guarded(self, text: str) -> str:
        """`text` with a guard in every special token, which is then encoded as plain text."""
        if GUARD in text:
            raise UserError(f"a text contains {GUARD!r}, which is no character of Unicode")
        return self._pattern.sub(lambda found: found[0][0] + GUARD + found[0][1:], text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which guarded special tokens are plain text.

        The text is encoded in pieces, between its own special tokens. The same text with the
        guarded ones broken shows whether the pieces have the ids that they have in the whole.

        Raises:
            UserError: if they have not.
        """
        broken = re.sub(f".{GUARD}", "", text, flags=re.DOTALL)
        whole = self._plain_ids(broken)
        for before in ("", "\n"):  # sentencepiece treats the beginning of a text specially
            if self._pieces_ids(broken, before) == whole:
                return self._pieces_ids(text, before)
        raise UserError(
            f"a text contains {self.found_in(text.replace(GUARD, ''))[0]}, which this tokenizer "
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
        for found in [*self._pattern.finditer(text), None]:
            piece = text[first : found.start() if found else len(text)].replace(GUARD, "")
            if piece:
                start = before if first else ""
                ids += plain(start + piece)[len(plain(start)) if start else 0 :]
            if found:
                ids.append(self.texts[found[0]])
                first = found.end()
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
