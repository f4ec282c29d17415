"""Loading tokenizers, so that they split text as their file says.

A model was trained with the tokens of its `tokenizer.json`. A class of transformers builds parts of
the tokenizer by itself: another pre-tokenizer, normaliser or decoder than the file has, without a
warning. The tokenizer of the file is then used.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmc_jax.data.files import read_object
from pmc_jax.errors import UserError
from pmc_jax.runtime.timing import time_limit

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")

TEXTS = (
    "Where was Zoltan Dornberg born?  In 1942, he'd say: \"it's 3.14159!\"\n\n\tÉté Ångström ﬁn",
    " leading and trailing ",
    "玛拉于1942年出生在里斯本。 Где родилась Мара? أين ولدت؟ मारा 한국어 🦊👩‍🚀",
    "Question: Who?\nAnswer: nobody_in-particular; camelCase x==y // 100,000",
)
"""Several scripts, spaces, line breaks, digits and signs. The tokenizer's own special tokens are
added."""


PROBE_SECONDS = 30.0
"""The longest time that encoding a few texts may take."""


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
        found = _auto_tokenizer(directory)
        with time_limit(PROBE_SECONDS):
            return as_in_file(found, directory)
    except UserError:
        raise
    except BaseException as e:
        if not is_of_library(e):
            raise
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise UserError(f"{directory}: the tokenizer cannot be loaded: {reason}") from e


def is_of_library(error: BaseException) -> bool:
    """Whether transformers or tokenizers may have raised it: an Exception, or a panic of Rust."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def muted_panics() -> Iterator[None]:
    """Nothing is written to the process's stderr: Rust prints a backtrace, whoever catches it."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _auto_tokenizer(directory: Path, **settings: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with muted_panics():
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


def as_in_file(tokenizer: PreTrainedTokenizerBase, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, or that of `tokenizer.json` if the two encode or decode texts differently.

    A warning names the parts that the tokenizer's class has changed.

    Raises:
        UserError: if the file cannot be loaded as it is either.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return tokenizer
    config = read_object(directory / "tokenizer_config.json", missing_ok=True)
    # These keys change the special tokens around a text on purpose.
    ends = config.get("add_bos_token") is None and config.get("add_eos_token") is None
    if is_same(tokenizer, raw_tokenizer(path, tokenizer), ends=ends):
        return tokenizer
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    raw = raw_tokenizer(path, found)
    if not is_same(found, raw, ends=False):
        with muted_panics():
            found(TEXTS[1])  # a broken part fails here, in its own words
        raise UserError(
            f"{path}: transformers loads another tokenizer than the file describes, which changes "
            f"{changed_parts(found, raw)}"
        )
    logger.warning(
        "%s: transformers loads it as %s, which changes %s; the tokenizer of the file is used",
        path, type(tokenizer).__name__, changed_parts(tokenizer, raw),
    )  # fmt: skip
    return found


def raw_tokenizer(path: Path, tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer of the file, with the tokens that `tokenizer_config.json` adds."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(path))
    raw.no_padding()
    raw.no_truncation()
    known = raw.get_added_tokens_decoder()
    added = tokenizer.added_tokens_decoder
    for index in sorted(added.keys() - known.keys()):
        token = added[index]
        if raw.id_to_token(index) in (None, str(token)):
            (raw.add_special_tokens if token.special else raw.add_tokens)([token])
    return raw


def is_same(tokenizer: PreTrainedTokenizerBase, raw: Tokenizer, *, ends: bool) -> bool:
    """Whether both tokenizers encode texts to the same ids and decode these to the same texts.

    Args:
        ends: compare the special tokens around a text, too.
    """
    marked = "a" + " b ".join(tokenizer.all_special_tokens) + "c"
    try:
        with muted_panics():
            for text in (*TEXTS, marked):
                ids = raw.encode(text, add_special_tokens=False).ids
                if tokenizer(text, add_special_tokens=False, verbose=False).input_ids != ids:
                    return False
                if ends and tokenizer(text, verbose=False).input_ids != raw.encode(text).ids:
                    return False
                for skip in (False, True):
                    decoded = tokenizer.decode(
                        ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                    )
                    if decoded != raw.decode(ids, skip_special_tokens=skip):
                        return False
    except BaseException as error:  # where a part does not suit another
        if not is_of_library(error):
            raise
        return False
    return True


def changed_parts(tokenizer: PreTrainedTokenizerBase, raw: Tokenizer) -> str:
    """The parts of the file that the tokenizer has not kept, in words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "how it is computed"
    ours, theirs = (json.loads(own.to_str()) for own in (backend, raw))
    found = [
        f"its {part.replace('_', '-')} ({name_of(ours[part])} in place of {name_of(theirs[part])})"
        for part in PARTS
        if ours[part] != theirs[part]
    ]
    return ", ".join(found) or "its tokens"


def name_of(part: dict[str, Any] | None) -> str:
    """The type of a part of a tokenizer, and those of a sequence of parts."""
    if part is None:
        return "none"
    inner: list[Any] = next(
        (part[key] for key in part if isinstance(part[key], list) and part[key]), []
    )
    names = [str(own["type"]) for own in inner if isinstance(own, dict) and "type" in own]
    return " and ".join(names) if part["type"] == "Sequence" and names else str(part["type"])
