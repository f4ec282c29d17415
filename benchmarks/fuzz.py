"""Try thousands of malformed inputs in this process: `python benchmarks/fuzz.py`.

Command lines, model configurations, tokenizers, weights, adapters and data files are changed at
random, and given to what reads them. An input is either accepted or refused with a `UserError` of
one line. It is wrong if anything else is raised, if a library in Rust prints that it panicked, if
reading takes longer than the time limit, or if what was accepted makes no sense: a text of the
command line that was changed, a number outside its bounds, a configuration that its own
`config.json` does not give again, a token that the model lacks.
"""

import argparse
import contextlib
import csv
import dataclasses
import faulthandler
import io
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

from convert.__main__ import main as convert_main
from convert.adapters import adapter_at, read_adapter, write_adapter
from convert.directory import read_config
from convert.load import eos_token_ids, find_tensors
from pmc_jax import settings
from pmc_jax.assets import WORLD_DATA, WORLD_MODEL
from pmc_jax.cli.config import (
    AskConfig,
    Config,
    DraftConfig,
    PlanConfig,
    WorldConfig,
    choices_of,
    config_directory,
    settings_of_schema,
)
from pmc_jax.cli.entry_point import as_meant, check_ahead, check_encoding, entry_point, parse
from pmc_jax.data import Dataset
from pmc_jax.data.files import to_json
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.errors import UserError
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.language_model import ModelSource, describe
from pmc_jax.model import param_count
from pmc_jax.model.trainable import LoRA, trainable
from pmc_jax.runtime.timing import time_limit
from pmc_jax.terminal import message_of

SECONDS = 20.0
"""The longest time that one input may take; a tenth of it on an idle machine is already long."""

COUNTS = {"command lines": 2000, "configurations": 4000, "tokenizers": 1000, "weights": 1000,
          "adapters": 1000, "data files": 3000}  # fmt: skip

SCHEMAS: dict[str, type] = {
    "train": Config, "evaluate": EvaluateConfig, "ask": AskConfig, "draft": DraftConfig,
    "plan": PlanConfig, "world": WorldConfig,
}  # fmt: skip

FOREIGN_WORDS = ("Lexer", "reference_type", "object_type", "mismatched input", "extraneous input")
"""Words of libraries that no message may have."""

NESTED: Any = None
for _ in range(400):
    NESTED = [NESTED]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**63, 10**9, 10**400,
    math.nan, math.inf, "", "x", "null", "1", "ü", "\x1b[2J", "{question}", "x" * 10**5, [], [None],
    [1, 2, 3], ["x"], {}, {"a": 1}, {"content": 5}, NESTED, 4096, "silu", "<s>", 0.02, 128,
)  # fmt: skip
"""Values that take the place of others."""

WORDS = (
    "1.10", "true", "null", "lr=1e-5", "jürgen", "my model (1)", '"Wer" sagte "was"', "'", '"', "",
    " ", "a,b", "[a", "{a:", "${seed}", "${", "1e400", "nan", "-1", "1" * 5000, "[" * 300, "\\",
    "a\nb", "\t", "#", "???", "~", "=", "choice(1,2)", "range(3)", "0x1F", "1_000", "+1", "None",
    "モデル", "\x1b[2J", "999999999999", "0.5", "3", "[1,2]", "{}", "demo", "\udcff",
)  # fmt: skip
"""Values as somebody might type them."""


class Nonsense(Exception):
    """Something was accepted that makes no sense."""


@dataclasses.dataclass
class Tally:
    """What became of the inputs of one kind.

    Attributes:
        refused, accepted: how many were.
        slowest: seconds of the one that took longest.
        wrong: the inputs that were neither, each with what happened.
    """

    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)

    @property
    def tried(self) -> int:
        """All inputs."""
        return self.refused + self.accepted + len(self.wrong)

    def to_json(self) -> dict[str, Any]:
        """The counts for the file."""
        return {"tried": self.tried, **dataclasses.asdict(self)}


# What reads an input: it returns, raises a UserError, or is wrong.


def command_line(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """A command line with one to three settings, and its check ahead of the command.

    One in ten is composed as the command does it, up to the command's own work.
    """
    name = rng.choice(list(SCHEMAS))
    arguments = [argument(rng, name) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.15:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(["-m", "-h", "--foo", "-"]))
    whole = rng.random() < 0.1

    def run() -> None:
        if whole:
            seen = called(name, arguments)
        else:
            check_encoding(arguments)
            options = parse(arguments, name)
            options.overrides = as_meant(options, name, SCHEMAS[name])
            if options.help:
                return
            check_ahead(options, name, SCHEMAS[name])
            return
        for config in seen:
            check_given(name, config, arguments)

    return " ".join([name, *arguments]), run


def argument(rng: random.Random, name: str) -> str:
    """`key=value` with a key that mostly exists, and a value that may be anything."""
    keys = [*settings_of_schema(SCHEMAS[name]), *choices_of(name)]
    key = rng.choice(keys)
    if rng.random() < 0.1:
        at = rng.randrange(len(key) + 1)
        key = key[:at] + rng.choice(" .=@/ü$[-") + key[at + rng.randint(0, 1) :]
    if rng.random() < 0.05:
        key = key.rpartition(".")[0]
    value = rng.choice(WORDS)
    if rng.random() < 0.2:
        value += rng.choice(WORDS)
    equals = "" if rng.random() < 0.03 else "="
    return rng.choice([""] * 9 + ["+", "++", "~"]) + key + equals + value


def called(name: str, arguments: Sequence[str]) -> list[Any]:
    """The settings of the runs of a whole command line.

    Raises:
        UserError: with what the command printed, if it ended with status 2.
    """
    seen: list[Any] = []
    errors = io.StringIO()
    sys.argv = [f"pmc {name}", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            entry_point(seen.append, name, SCHEMAS[name])()
    except SystemExit as end:
        if end.code not in (None, 0):
            lines = errors.getvalue().removeprefix("error: ").removesuffix("\n")
            raise UserError(lines) from None
    return seen


def check_given(name: str, config: Any, arguments: Sequence[str]) -> None:
    """Check that numbers keep their bounds, and that texts are those that were typed.

    Raises:
        Nonsense: naming the key.
    """
    settings.check(config)
    found = settings.flat(config)
    for key, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Nonsense(f"{key} is {value}")
    known = settings_of_schema(SCHEMAS[name])
    given = dict(text.lstrip("+").split("=", 1) for text in arguments if "=" in text)
    for key, text in given.items():
        plain = "-m" not in arguments and "${" not in text and text[:1] not in ("'", '"', "n")
        is_text = key in known and known[key].kind is str
        if plain and is_text and found[key] != text:
            raise Nonsense(f"{key} is {found[key]!r}")


def configuration(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """A `config.json` with changes, and its reading."""
    content = rng.choice(architectures())
    said = write_changed(rng, directory / "config.json", content)

    def run() -> None:
        _, family, cfg = read_config(directory)
        eos_token_ids(directory, cfg.vocab_size)
        if not 0 < param_count(cfg) < 2**62:
            raise Nonsense(f"{param_count(cfg)} parameters")
        again = family.from_hf(json.loads(json.dumps(family.to_hf(cfg), allow_nan=False)))
        if again != cfg:
            raise Nonsense(f"{again} in place of {cfg}")

    return said, run


@cache
def architectures() -> list[dict[str, Any]]:
    """The configurations of `configs/model`, and that of the bundled model."""
    found = [json.loads((WORLD_MODEL / "config.json").read_text(encoding="utf-8"))]
    for path in sorted((config_directory() / "model").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")).get("architecture")
        found += [content] if content else []
    return found


TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "generation_config.json", "special_tokens_map.json",
    "pmc_prompt.json", "chat_template.jinja",
)  # fmt: skip

SPECIAL = {
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
    "pmc_prompt.json": {"template": "plain", "question": "Q: {question}", "answer": " {answer}"},
}
"""Files that the bundled model lacks."""

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

PIECES = (
    "{% for i in range(10**9) %}", "{{ 9 ** 9 ** 9 }}", "{{ 'x' * 10**8 }}", "{{", "}}", "{%", "%}",
    "{{ raise_exception('no') }}", "{{ messages[9] }}", "{{ x.y.z }}", "\x1b[2J", "{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages | tojson }}", "{# ", "ü",
)  # fmt: skip
"""Pieces of a chat template."""


def tokenizer(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """The bundled model with a changed file of its tokenizer, and the template that it gives."""
    for path in WORLD_MODEL.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, directory)
    name = rng.choice(TOKENIZER_FILES)
    path = directory / name
    if name == "chat_template.jinja":
        at = rng.randrange(len(TEMPLATE))
        piece = rng.choice(PIECES)
        path.write_text(TEMPLATE[:at] + piece + TEMPLATE[at + rng.choice([0, 1, 20]) :])
        said = f"{name}: {piece!r} at {at}"
    else:
        content = SPECIAL.get(name) or json.loads(path.read_text(encoding="utf-8"))
        said = write_changed(rng, path, content)

    def run() -> None:
        model = describe(ModelSource(path=str(directory)), PromptConfig())
        template, vocab = model.template, model.config.vocab_size
        prompt, answer = template.encode_pair("Who is Mara Ostberg?", "An author.")
        used = {*prompt, *answer, *template.encode_prefix("The"), *template.stop_ids}
        if not all(type(token) is int and token >= 0 for token in used):
            raise Nonsense(f"tokens {sorted(used)[:9]}")
        if max(template.stop_ids) >= vocab:
            raise Nonsense(f"stop ids {template.stop_ids}")
        template.decode(answer)

    return said, run


def weights(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """A small model whose weights have changed bytes or a changed header, and their listing."""
    shutil.copy(WORLD_MODEL / "config.json", directory)
    source, path = WORLD_MODEL / "model.safetensors", directory / "model.safetensors"
    content, said = changed_tensors(rng, source.read_bytes())
    path.write_bytes(content)

    def run() -> None:
        _, family, cfg = read_config(directory)
        tensors = find_tensors(directory, family, cfg)
        for tensor in tensors.values():
            if tensor.read().shape != tensor.shape:
                raise Nonsense(f"{tensor.name} has another shape")

    return said, run


def changed_tensors(rng: random.Random, raw: bytes) -> tuple[bytes, str]:
    """The content of a safetensors file with changed bytes or a changed header; and how."""
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.6:
        header, said = changed(rng, json.loads(raw[8 : 8 + size]))
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + size :], said
    head, said = damaged(rng, raw[: 8 + size])
    return head + raw[8 + size :], said


@cache
def adapter_files() -> dict[str, bytes]:
    """The files of a new adapter of the bundled model."""
    _, _, cfg = read_config(WORLD_MODEL)
    part = trainable(cfg, adapter=LoRA(rank=2, targets=["q", "down"]))
    assert part is not None
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "adapter"
        write_adapter(part.initial(jax.random.key(0), "float32"), part, WORLD_MODEL, place)
        return {path.name: path.read_bytes() for path in place.iterdir()}


def adapter(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """An adapter with a changed file, and its reading; one in five is merged by `pmc convert`."""
    place = directory / "adapter"
    place.mkdir()
    for name, content in adapter_files().items():
        (place / name).write_bytes(content)
    if rng.random() < 0.6:
        path = place / "adapter_config.json"
        said = write_changed(rng, path, json.loads(path.read_bytes()))
    else:
        path = place / "adapter_model.safetensors"
        content, said = changed_tensors(rng, path.read_bytes())
        path.write_bytes(content)
    out = directory / "merged"
    arguments = ["merge", str(WORLD_MODEL), str(out), str(place)]
    merges = rng.random() < 0.2
    if merges and rng.random() < 0.5:
        at = rng.randrange(len(arguments) + 1)
        arguments[at : at + rng.randint(0, 1)] = [rng.choice((*WORDS, "--dtype=float16", "-h"))]
        said = " ".join(["convert", *arguments])

    def run() -> None:
        if merges:
            converted(arguments)
            if out.exists():
                describe(ModelSource(path=str(out)), PromptConfig())
            return
        part = adapter_at(place, WORLD_MODEL)
        params = read_adapter(part, WORLD_MODEL, "float32")
        found = [leaf.shape for leaf in jax.tree.leaves(params)]
        if found != [spec.shape for spec in jax.tree.leaves(part.specs)]:
            raise Nonsense(f"shapes {found}")
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise Nonsense("a weight is not finite")

    return said, run


def converted(arguments: Sequence[str]) -> None:
    """Call `pmc convert`.

    Raises:
        UserError: with what it printed, if it ended with status 2.
    """
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = convert_main(arguments)
        except SystemExit as end:
            if end.code != 0 or "-h" not in arguments:
                raise
            status = 0  # argparse has printed the help
    if status:
        raise UserError(errors.getvalue().removeprefix("error: ").removesuffix("\n"))


ROLES = {
    "forget10.json": "forget", "forget10_perturbed.json": "world_facts", "text.txt": "text",
    "retain90.json": "retain", "idontknow.jsonl": "world_facts",
}  # fmt: skip
"""Files of the bundled data, and what a changed one stands for."""

SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".parquet")


def data_file(rng: random.Random, directory: Path) -> tuple[str, Callable[[], None]]:
    """A data set with a changed file in one of the formats, and its reading."""
    name = rng.choice(list(ROLES))
    text = (WORLD_DATA / name).read_text(encoding="utf-8")
    path = directory / name
    if name in ("text.txt", "idontknow.jsonl"):
        raw, said = text.encode(), "as it is"
    else:
        rows = [json.loads(line) for line in text.splitlines()]
        path = path.with_suffix(rng.choice(SUFFIXES))
        said = "as it is"
        if rng.random() < 0.5 and path.suffix != ".parquet":  # whose columns have one type
            at = rng.randrange(len(rows))
            rows[at], said = changed(rng, rows[at])
        raw = table_of(rows, path.suffix)
    if said == "as it is" and rng.random() < 0.9:
        raw, said = damaged(rng, raw)
    path.write_bytes(raw)
    files = {"forget": WORLD_DATA / "forget10.json", "retain": WORLD_DATA / "retain90.json"}
    files[ROLES[name]] = path
    fields: dict[str, str] = {}
    if rng.random() < 0.2:
        names = ["question", "answer", "system", "prompt", "a.b", "", "ü", "question.x", "messages"]
        fields = {rng.choice(names): rng.choice(names)}

    def run() -> None:
        data = Dataset.from_files(**files, fields=fields or None)
        for row in (*data.forget, *data.retain):
            if not row.question.strip():
                raise Nonsense("an empty question")

    return f"{path.name} {fields or ''}: {said}", run


def table_of(rows: Sequence[Any], suffix: str) -> bytes:
    """Rows in the format that a suffix stands for; a row that has no columns is left out."""
    if suffix == ".json":
        return "\n".join(json.dumps(row) for row in rows).encode()
    known = [row for row in rows if isinstance(row, dict)]
    if suffix == ".txt":
        return "\n".join(str(row.get("question")) for row in known).encode(errors="replace")
    if suffix == ".parquet":
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(known), out)
        return out.getvalue()
    columns = list(dict.fromkeys(key for row in known for key in row))
    table = io.StringIO()
    lines = csv.writer(table, delimiter="," if suffix == ".csv" else "\t")
    lines.writerow(columns)
    for row in known:
        cells = [row.get(key) for key in columns]
        lines.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return table.getvalue().encode(errors="replace")


# How an input is changed.


def changed(rng: random.Random, value: Any) -> tuple[Any, str]:
    """A JSON value with another one in some place, or without it; and what was changed."""
    places = list(paths_of(value))
    path = rng.choice(places)
    action = rng.choice(["replace", "replace", "replace", "remove", "add"])
    if not path:
        new = rng.choice(VALUES)
        return new, f"all = {str(new)[:40]}"
    value = json.loads(json.dumps(value))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    new = rng.choice(VALUES)
    if action == "remove":
        del parent[path[-1]]
    elif action == "add" and isinstance(parent, dict):
        parent[rng.choice(("x", "", "rope_scaling", "messages", "system", "auto_map"))] = new
    else:
        parent[path[-1]] = new
    return value, f"{action} {'/'.join(map(str, path))[:60]} {str(new)[:40]}"


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a JSON value: that of the whole, of its items, and of theirs."""
    yield path
    if isinstance(value, dict):
        for key in list(value)[:200]:
            yield from paths_of(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 5)):
            yield from paths_of(value[index], (*path, index))


def damaged(rng: random.Random, raw: bytes) -> tuple[bytes, str]:
    """Bytes that were cut, changed, repeated or encoded otherwise; and how."""
    at, size = rng.randrange(len(raw)), rng.choice([1, 1, 4, 100])
    noise = bytes(rng.randrange(256) for _ in range(size))
    kinds = {
        "cut": raw[:at],
        "changed": raw[:at] + noise + raw[at + size :],
        "inserted": raw[:at] + noise + raw[at:],
        "removed": raw[:at] + raw[at + size :],
        "repeated": raw[:at] + raw[at // 2 :],
        "nothing": b"",
        "zeros": raw[:at] + bytes(size) + raw[at:],
        "in UTF-16": raw.decode("latin-1").encode("utf-16"),
        "with a mark": b"\xef\xbb\xbf" + raw,
        "nested": b"[" * 100_000,
        "a long number": b'{"a": ' + b"1" * 10_000 + b"}",
    }
    kind = rng.choice(list(kinds))
    return kinds[kind], f"{kind} at {at}"


def write_changed(rng: random.Random, path: Path, content: Any) -> str:
    """Write JSON content to `path`, changed as a value or as bytes; returns how."""
    if rng.random() < 0.75:
        said = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            content, change = changed(rng, content)
            said.append(change)
        path.write_text(json.dumps(content), encoding="utf-8")
        return f"{path.name}: {'; '.join(said)}"
    raw, change = damaged(rng, json.dumps(content).encode())
    path.write_bytes(raw)
    return f"{path.name}: {change}"


# Trying inputs.


KINDS: Mapping[str, Callable[[random.Random, Path], tuple[str, Callable[[], None]]]] = {
    "command lines": command_line,
    "configurations": configuration,
    "tokenizers": tokenizer,
    "weights": weights,
    "adapters": adapter,
    "data files": data_file,
}
"""What makes an input of each kind, and the function that reads it."""


def muted() -> contextlib.redirect_stderr[io.StringIO]:
    """What Python prints to stderr is left out."""
    return contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def printed_by_libraries(found: list[str]) -> Iterator[None]:
    """Replace the text in `found` by what is printed to the process's stderr, not by Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found[0] = file.read(10**5).decode(errors="replace")


def try_one(run: Callable[[], None], said: str, tally: Tally) -> None:
    """Read one input, and count what became of it."""
    started, printed = time.perf_counter(), [""]
    try:
        with printed_by_libraries(printed), time_limit(SECONDS), muted():
            run()
        tally.accepted += 1
    except UserError as error:
        message = str(error)
        if "\n" in message_of(error) or any(word in message for word in FOREIGN_WORDS):
            tally.wrong.append(f"{said}: message {message[:200]!r}")
        else:
            tally.refused += 1
    except SystemExit as end:  # argparse has printed its line
        tally.refused += end.code == 2
        if end.code != 2:
            tally.wrong.append(f"{said}: status {end.code}")
    except BaseException as error:  # a panic of a library in Rust is none of Python's Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        tally.wrong.append(f"{said}: {type(error).__name__} {str(error)[:200]!r}")
    if "panicked" in printed[0]:
        tally.wrong.append(f"{said}: printed {printed[0][:200]!r}")
    seconds = time.perf_counter() - started
    tally.slowest = max(tally.slowest, seconds)
    if seconds > SECONDS:
        tally.wrong.append(f"{said}: {seconds:.0f} s")


def fuzz(kind: str, count: int, seed: int) -> Tally:
    """Try `count` inputs of one kind, the same ones for the same seed."""
    tally = Tally()
    describe(ModelSource(), PromptConfig())  # imports take long, and no limit must interrupt them
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            directory = Path(scratch) / str(number)
            directory.mkdir()
            rng = random.Random(f"{kind} {seed} {number}")
            said, run = KINDS[kind](rng, directory)
            # A loop inside a library in C or Rust does not see the time limit.
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            with contextlib.chdir(directory):  # for what writes to a path that was changed
                try_one(run, f"[{number}] {said}", tally)
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(directory)
    logging.disable(logging.NOTSET)
    return tally


def main() -> None:
    """Try all kinds, print the counts, and write `benchmarks/fuzz.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual numbers")
    parser.add_argument("--kind", choices=list(KINDS), help="one kind only; the file keeps others")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    options = parser.parse_args()
    path = Path(__file__).parent / "fuzz.json"
    former = json.loads(path.read_text()) if options.kind else {}
    result: dict[str, Any] = {kind: former[kind] for kind in KINDS if kind in former}
    for kind in [options.kind] if options.kind else KINDS:
        started = time.perf_counter()
        tally = fuzz(kind, max(1, round(COUNTS[kind] * options.scale)), options.seed)
        seconds = time.perf_counter() - started
        result[kind] = {
            **tally.to_json(), "seconds": seconds, "load_average": os.getloadavg()[0]
        }  # fmt: skip
        print(
            f"{kind}: {tally.tried} tried, {tally.accepted} accepted, {tally.refused} refused, "
            f"{len(tally.wrong)} wrong; {seconds:.0f} s, slowest {tally.slowest:.1f} s", flush=True
        )  # fmt: skip
        for line in tally.wrong:
            print(f"  {line}")
    path.write_text(to_json(result, indent=2) + "\n")
    sys.exit(any(one["wrong"] for one in result.values()))


if __name__ == "__main__":
    main()
