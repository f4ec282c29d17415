"""Arguments as people type them: texts are taken literally, and mistakes are one line."""

import dataclasses
import math
import sys
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_cli import METHODS, SCHEMAS, pmc

from pmc_jax import settings
from pmc_jax.cli.entry_point import entry_point, find_own_files
from pmc_jax.cli.overrides import Setting, items, literal
from pmc_jax.settings import BOUNDS
from pmc_jax.terminal import escaped, message_of

TEXT = {"key": Setting(str), "free": Setting(str, optional=True, free_text=True)}
"""A text such as a path, and one such as a question."""

ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
HARD_TEXT = st.text(st.sampled_from("ab,'\"\\ =()[]{}$:\n#~ü1.e"), max_size=12)
"""Texts of characters that mean something in Hydra's grammar."""


def composed(argument: str) -> Any:
    """The value that Hydra and OmegaConf make of `key=value`."""
    override = OverridesParser.create().parse_override(argument)
    return OmegaConf.create({"value": override.value()}).value


def is_in_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


@given(ANY_TEXT | HARD_TEXT)
def test_a_text_is_taken_literally(text):
    if is_in_quotes(text) or text == "???":  # OmegaConf's word for a missing value
        return
    if text != "null":
        assert composed(literal(f"free={text}", TEXT, sweep=False)) == text
    if "${" not in text:
        assert composed(literal(f"key={text}", TEXT, sweep=False)) == text


@given(st.lists(ANY_TEXT | HARD_TEXT, min_size=2, max_size=4))
def test_a_sweep_has_the_values_between_its_commas(texts):
    texts = [text.replace(",", ";").strip() for text in texts]
    if any(text[:1] in ("'", '"') or "${" in text for text in texts):
        return
    argument = literal(f"key={','.join(texts)}", TEXT, sweep=True)
    swept = OverridesParser.create().parse_override(argument)
    assert [composed(f"key={value}") for value in swept.sweep_string_iterator()] == texts
    # Without a sweep, a comma is a comma.
    assert composed(literal(f"key={','.join(texts)}", TEXT, sweep=False)) == ",".join(texts)


def test_items_are_split_at_commas_outside_quotes():
    assert items("a, b,c") == ["a", "b", "c"]
    assert items("""'a,b',"c,d",it's,e'f""") == ["'a,b'", '"c,d"', "it's", "e'f"]
    assert items("${a:b,c},[d,e],") == ["${a:b,c}", "[d,e]", ""]
    assert items("") == [""]


KEPT = {
    "quotes that somebody gave": ("key='a,b'", "key='a,b'"),
    "double quotes": ('key="1.10"', 'key="1.10"'),
    "an interpolation": ("key=lr${seed}", 'key="lr${seed}"'),
    "a function of values": ("key=choice(a,b)", "key=choice(a,b)"),
    "a key that is no text": ("seed=1,2", "seed=1,2"),
    "nothing": ("key=", 'key=""'),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_hydra_understands_stays(name):
    argument, expected = KEPT[name]
    assert literal(argument, TEXT, sweep=True) == expected


# --- whole command lines


LITERAL: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a number": (["train", "name=1.10"], {"name": "1.10"}),
    "true": (["train", "name=true"], {"name": "true"}),
    "null": (["train", "name=null"], {"name": "null"}),
    "null where it is meant": (["train", "data.path=null"], {"data.path": None}),
    "an equals sign": (["train", "model.path=lr=1e-5"], {"model.path": "lr=1e-5"}),
    "an umlaut": (["train", "model.path=jürgen"], {"model.path": "jürgen"}),
    "another script": (["train", "name=モデル"], {"name": "モデル"}),
    "spaces and parentheses": (
        ["train", "model.path=my model (1)"], {"model.path": "my model (1)"},
    ),
    "commas": (["train", "model.path=a,b"], {"model.path": "a,b"}),
    "brackets": (["train", "runs_dir=[old] {x}"], {"runs_dir": "[old] {x}"}),
    "a colon and a backslash": (["train", "model.path=C:\\new\\"], {"model.path": "C:\\new\\"}),
    "a trailing space": (["train", "model.path=dir "], {"model.path": "dir "}),
    "an open interpolation": (["train", "model.path=a${b"], {"model.path": "a${b"}),
    "quotes": (
        ["ask", 'question="Wer" sagte "was"'], {"question": '"Wer" sagte "was"'},
    ),
    "a question in quotes": (["ask", 'question="Wer?"'], {"question": "Wer?"}),
    "an apostrophe": (["ask", "question=Who is Ann's 'father'"],
                      {"question": "Who is Ann's 'father'"}),
    "a date": (["ask", "prompt.date_string=26 Jul 2024"], {"prompt.date_string": "26 Jul 2024"}),
    "added": (["train", "++name=1.10"], {"name": "1.10"}),
    "a list of paths": (["evaluate", "compare=[a (1),jürgen]"], {"compare": ["a (1)", "jürgen"]}),
    "one path": (["evaluate", "compare=my model"], {"compare": "my model"}),
    "a method's text": (["train", "method=altpo", "method.alternatives=a,b (1)"],
                        {"method.alternatives": "a,b (1)"}),
    "a number's name": (["train", "name=0x1F", "seed=7"], {"name": "0x1F", "seed": 7}),
    "an interpolation": (["train", "name=run-${seed}", "seed=7"], {"name": "run-7", "seed": 7}),
}  # fmt: skip
"""Arguments, and what the settings are then."""


def settings_given(arguments: list[str], monkeypatch) -> list[dict[str, Any]]:
    """The settings of the runs that a command line makes."""
    name, *rest = arguments
    seen: list[Any] = []
    main = entry_point(seen.append, name, SCHEMAS[name])
    monkeypatch.setattr(sys, "argv", [f"pmc {name}", *rest])
    main()
    return [settings.flat(config) for config in seen]


@pytest.mark.parametrize("name", LITERAL)
def test_texts_are_taken_literally(name, monkeypatch):
    arguments, expected = LITERAL[name]
    [found] = settings_given(arguments, monkeypatch)
    assert {key: found[key] for key in expected} == expected


def test_a_sweep_over_texts(monkeypatch):
    found = settings_given(["train", "-m", "name=1.10,jürgen,'a,b'", "model.path=x=1"], monkeypatch)
    assert [run["name"] for run in found] == ["1.10", "jürgen", "a,b"]
    assert {run["model.path"] for run in found} == {"x=1"}


LONG = "1" * 5000

MISTAKES = {
    "an added key": (["train", "+foo=1"], "unknown configuration key foo; "),
    "a removed key": (["train", "~seed"], "~seed: expected KEY=VALUE; "),
    "a removed value": (["train", "~seed=0"], "~seed=0: a setting cannot be removed; "),
    "a group of nothing": (["train", "model=null"], "model=null: expected one of bundled, "),
    "data of nothing": (["train", "data=null"], "data=null: expected one of files, "),
    "no sweep": (["train", "sweep=null"], "sweep=null: expected one of ablation_epochs, "),
    "numbers for a group": (["train", "-m", "sweep=range(3)"], "sweep=range(3): expected one of "),
    "an unknown choice": (
        ["train", "-m", "method=choice(pmc,nop)"],
        "method=choice(pmc,nop): expected one of altpo, ",
    ),
    "a number for a group": (["plan", "experiment=+1", "x=1"], "unknown configuration key x; "),
    "a missing column": (
        ["evaluate", "data.fields.answer=???"], "data.fields.answer is missing; give ",
    ),
    "a model's path for its group": (
        ["train", "model=/tmp/my model"], "model=/tmp/my model: expected one of bundled, ",
    ),
    "a group where there is none": (
        ["ask", "model=bundled"], "model=bundled: expected model.KEY=VALUE, such as model.path=…",
    ),
    "settings as a value": (
        ["train", "training=5"], "training=5: expected training.KEY=VALUE, such as training.epochs",
    ),
    "no key": (["train", "=1"], "=1: expected KEY=VALUE"),
    "a space in a key": (["train", "see d=1"], "unknown configuration key see d; "),
    "a very long number": (["train", f"seed={LONG}"], "seed=1111111111"),
    "a very long text": (["train", f"seed={'x' * 5000}"], "seed=xxxxxxxxxx"),
    "samples": (["ask", "n=1000000000"], "n=1000000000: expected at most 65536"),
    "length": (
        ["train", "training.max_length=99999999999"],
        "training.max_length=99999999999: expected at most 2**20",
    ),
    "batch": (
        ["train", "training.batch_size=1000000000"], "training.batch_size=1000000000: expected at ",
    ),
    "an infinite number": (
        ["train", "optimizer.learning_rate=inf"], "optimizer.learning_rate=inf: expected at most 1",
    ),
    "no number": (
        ["train", "optimizer.beta2=nan"], "optimizer.beta2=nan: expected at least 0",
    ),
    "a moment's decay": (
        ["train", "optimizer.beta1=2"], "optimizer.beta1=2.0: expected less than 1",
    ),
    "a fraction": (["train", "seed=1.5"], "seed=1.5: expected an integer"),
    "a bracket": (["train", "seed=1("], "seed=1(: expected an integer"),
    "a switch": (["train", "overwrite=perhaps"], "overwrite=perhaps: expected true or false"),
    "a number or null": (
        ["train", "data.retain_rows=some"], "data.retain_rows=some: expected an integer or null",
    ),
    "a list": (
        ["evaluate", "robustness.steps=[1,x]"],
        "robustness.steps=[1,x]: expected a list such as [1,2], each an integer",
    ),
    "no list": (["evaluate", "robustness.steps=3"], "robustness.steps=3: expected a list such as"),
    "many brackets": (["train", f"seed={'[' * 5000}"], "seed=[[[[[[[["),
    "an unknown interpolation": (["train", "name=${nothing}"], "name: Interpolation key 'nothing'"),
    "a sweep of a question": (["ask", "-m", "n=1,2"], "--multirun: ask makes one run; "),
    "an option before the command": (["-m", "train"], "-m: options follow the command, as in pmc "),
    "not UTF-8": (["ask", "question=\udcff"], "question=\\udcff: not UTF-8"),
}  # fmt: skip
"""Arguments, and how the only line of the error begins."""


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_without_hydra_s_words(name, tmp_path, monkeypatch, capsys):
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    status, out, err = pmc(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2 and not out
    assert err.startswith(f"error: {message}") and err.count("\n") == 1, err
    assert len(err) < 1100
    for word in ("reference_type", "Lexer", "hydra", "mismatched", "Error"):
        assert word not in err
    assert not list(tmp_path.iterdir())


# --- bounds


def numbers(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields of a settings class that hold numbers, those of its groups included."""
    found = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            found += numbers(field.default_factory)
        elif any(word in str(field.type) for word in ("int", "float")):
            found.append(field)
    return found


@pytest.mark.parametrize("kind", [*SCHEMAS.values(), *METHODS.values()], ids=lambda k: k.__name__)
def test_every_number_has_bounds_on_both_sides(kind):
    for field in numbers(kind):
        found = {name: field.metadata[name] for name in BOUNDS if name in field.metadata}
        bounds = {BOUNDS[name][0]: bound for name, bound in found.items()}
        assert bounds.keys() & {"at least", "more than"}, field.name
        assert bounds.keys() & {"at most", "less than"}, field.name
        assert all(map(math.isfinite, bounds.values()))


# --- what a terminal shows


@given(ANY_TEXT)
def test_a_visible_text_has_nothing_to_obey(text):
    shown = escaped(text)
    assert shown.isprintable() or all(c.isprintable() or c.isspace() or ord(c) > 127 for c in shown)
    assert "\x1b" not in shown and "\x9b" not in shown and "\n" not in shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_an_error_is_one_short_line():
    full = OSError(28, "No space left on device", "a/b")
    assert message_of(full) == "a/b: no space left on device"
    assert message_of(ValueError("a\n\x1b[31mb")) == "a\\n\\x1b[31mb"
    assert len(message_of(ValueError("x" * 10**6))) <= 1001


def test_own_files_are_found_in_their_directory(tmp_path):
    """A given name stays, and a file that exists in two formats is not chosen."""
    for name in ("forget.csv", "retain.jsonl", "retain.csv"):
        (tmp_path / name).touch()
    own = {"format": "files", "path": str(tmp_path), "forget": "???", "retain": "???"}
    for given_data, forget in ((own, "forget.csv"), (own | {"forget": "mine.csv"}, "mine.csv")):
        settings_given = OmegaConf.create({"data": given_data})
        find_own_files(settings_given)
        assert settings_given.data.forget == forget
        assert OmegaConf.is_missing(settings_given.data, "retain")
    (tmp_path / "retain.csv").unlink()
    find_own_files(settings_given)
    assert settings_given.data.retain == "retain.jsonl"
    for other in (own | {"path": None}, own | {"format": "tofu"}):
        untouched = OmegaConf.create({"data": other})
        find_own_files(untouched)
        assert OmegaConf.is_missing(untouched.data, "forget")
    for other in ({"seed": 0}, {"data": {"fields": {}}}):  # commands without these settings
        without = OmegaConf.create(other)
        OmegaConf.set_struct(without, True)
        find_own_files(without)
        assert without == other
