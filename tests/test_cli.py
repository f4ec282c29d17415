"""The command line: `pmc`, help pages, bounds of settings, and one-line errors."""

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from convert.__main__ import main as convert
from convert.__main__ import parse as parse_conversion
from pmc_jax import __version__, report, settings
from pmc_jax.cli import commands
from pmc_jax.cli.arguments import introduction, usage
from pmc_jax.cli.commands import COMMANDS, WIDTH
from pmc_jax.cli.config import (
    AskConfig,
    Config,
    DraftConfig,
    PlanConfig,
    WorldConfig,
    check_values,
    group_names,
    settings_of_schema,
)
from pmc_jax.cli.entry_point import as_meant, check_ahead, entry_point, help_for, parse
from pmc_jax.data.rows import Fields
from pmc_jax.errors import UserError
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.language_model import ModelSource
from pmc_jax.settings import bounded, descriptions, flat, nested, one_of, path_to, recorded
from pmc_jax.unlearning.method import methods

METHODS = methods()

ROOT = Path(__file__).parent.parent

SCHEMAS: dict[str, type] = {
    "train": Config,
    "evaluate": EvaluateConfig,
    "ask": AskConfig,
    "draft": DraftConfig,
    "plan": PlanConfig,
    "world": WorldConfig,
}


def pmc(*arguments: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit status, output and errors of the console script, called in this process."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pmc", *arguments])
    try:
        status = commands.main()
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return int(status or 0), captured.out, captured.err


# --- pmc itself


def test_the_script_is_declared_and_every_command_has_a_main():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["pmc"].partition(":")
    assert getattr(importlib.import_module(module), name) is commands.main
    for name, command in COMMANDS.items():
        assert callable(commands.module_of(name).main), command.module


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_pmc_lists_its_commands(arguments, monkeypatch, capsys):
    status, out, err = pmc(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 0 and not err
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= WIDTH


def test_the_version(monkeypatch, capsys):
    assert pmc("--version", monkeypatch=monkeypatch, capsys=capsys)[1] == f"pmc_jax {__version__}\n"


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from pmc_jax.cli.commands import main; main(['--help']); main(['--version']); "
        "print(sorted({'jax', 'numpy', 'hydra', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "the nearest command is train"), ("zzz", "expected train, evaluate, "),
     ("reports", "the nearest command is report")],
)  # fmt: skip
def test_an_unknown_command_names_the_nearest(name, hint, monkeypatch, capsys):
    status, out, err = pmc(name, "x=1", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2 and not out and err.startswith(f"error: unknown command {name}; {hint}")
    assert err.count("\n") == 1


# --- help pages


def settings_in(page: str) -> list[str]:
    """The keys that a help page lists."""
    return re.findall(r"^  ([a-z_]+(?:\.[a-z0-9_]+)+|[a-z_]+)=.*$", page.split("general:")[1], re.M)


def methods_settings(name: str) -> set[str]:
    return {f"method.{field.name}" for field in dataclasses.fields(METHODS[name])} - {"method.name"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_has_examples(name, monkeypatch, capsys):
    status, out, err = pmc(name, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 0 and not err
    assert out.startswith(f"usage: pmc {name} ") and "_schema" not in out
    assert max(map(len, out.splitlines())) <= WIDTH
    lines = out.splitlines()
    start = lines.index("examples:")
    found = [line for line in lines[start + 1 : lines.index("", start)] if line.startswith("  # ")]
    assert len(found) == 3
    assert 2 <= lines[lines.index("") :].index("examples:") - 1 <= 5  # what the command does


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_modules_fits_a_terminal(name, monkeypatch):
    """`python -m pmc_jax.train` is longer than `pmc train`."""
    monkeypatch.setattr(sys, "argv", ["somewhere.py"])
    pages = [f"usage: {usage(name)}", introduction(name)]
    if name in SCHEMAS:
        pages.append(help_for([], name, SCHEMAS[name]))
    lines = "\n".join(pages).splitlines()
    assert any(COMMANDS[name].module in line for line in lines)
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if re.search(r" --\S+ \\$", line)]  # no option without value


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_has_a_line_of_its_own(name):
    """Every setting is listed, and nothing else is."""
    command, page = COMMANDS[name], help_for([], name, SCHEMAS[name])
    keys = settings_in(page)
    assert len(keys) == len(set(keys))
    hidden = {"method.name", *command.unused}
    applicable = {
        key
        for key in flat(SCHEMAS[name]())
        if key not in hidden and key.partition(".")[0] not in hidden
    } - {"adapter"}  # a group, of which none is chosen
    if "method" in {field.name for field in dataclasses.fields(SCHEMAS[name])}:
        applicable |= methods_settings("pmc") - hidden
    assert set(keys) == applicable
    for line in page.split("general:")[1].split("options:")[0].splitlines():
        assert not line.endswith("="), line


KINDS = [*SCHEMAS.values(), *METHODS.values(), Fields]
KINDS += [
    type(getattr(schema(), field.name))
    for schema in SCHEMAS.values()
    for field in dataclasses.fields(schema)
    if dataclasses.is_dataclass(field.default_factory)
]


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
def test_every_setting_is_described_where_it_is_declared(kind):
    names = {
        field.name
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(field.default_factory)
    }
    found = descriptions(kind)
    assert found.keys() == names
    assert all(len(text) > 10 and text.endswith(".") for text in found.values())


def test_help_is_for_the_chosen_method(monkeypatch, capsys):
    methods = ("pmc", "npo", "altpo", "finetune", "ga", "rmu")
    pages = {name: help_for([f"method={name}"], "train", Config) for name in methods}
    for name, page in pages.items():
        keys = set(settings_in(page))
        assert {key for key in keys if key.startswith("method.")} == methods_settings(name)
        samples = "method.samples" in keys
        assert ("training.decode_batch" in keys) == samples
        assert ("training.prune" in keys) == ("method.selection_temperature" in keys)
    assert "  method.beta=0.5  " in pages["npo"] and "\n  method=npo\n" in pages["npo"]
    out = pmc("train", "method=npo", "-h", monkeypatch=monkeypatch, capsys=capsys)[1]
    assert out.split("general:")[1].strip() == pages["npo"].split("general:")[1].strip()


def test_help_lists_the_choices_of_groups_and_settings():
    page = help_for([], "train", Config)
    words = " ".join(page.split())
    for group in ("experiment", "method", "model", "data", "sweep"):
        assert len(group_names(group)) > 3 and ", ".join(group_names(group)) in words
    assert "One of float32, bfloat16." in words  # the choices of moment_dtype
    assert '"linear": warm-up' in words and "One of linear" not in words
    assert "quick, paper, tofu, attacks, full" in " ".join(
        help_for([], "evaluate", EvaluateConfig).split()
    )


def test_help_shows_the_values_that_are_composed():
    own = help_for(["experiment=own", "training.epochs=3"], "train", Config)
    assert "  training.epochs=3  " in own and "  method.samples=10  " in own
    assert re.search(r"  model\.path=… +required: a Hugging Face directory", own)
    assert re.search(r"  data\.forget=… +required: ", own)
    swept = help_for(["-m", "seed=1,2", "method=npo,gd"], "train", Config)
    assert "  seed=1  " in swept and "method=npo: Negative" in swept
    plan = help_for(["experiment=tofu_llama3_2_3b"], "plan", PlanConfig)
    assert "  model.architecture={…}  " in plan and "  training.batch_size=8  " in plan


def test_help_of_python_m_shows_that_way_of_calling():
    done = subprocess.run(
        [sys.executable, "-m", "pmc_jax.ask", "-h"], capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.startswith("usage: python -m pmc_jax.ask model.path=DIR question=")
    assert "\n  python -m pmc_jax.ask question=" in done.stdout
    assert "pmc ask" not in done.stdout


def example_arguments(name: str) -> list[list[str]]:
    return [shlex.split(arguments) for _, arguments in COMMANDS[name].examples]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_examples_of_help_are_valid(name):
    for arguments in example_arguments(name):
        options = parse(arguments, name)
        options.overrides = as_meant(options, name, SCHEMAS[name])
        check_ahead(options, name, SCHEMAS[name])


def test_the_other_examples_are_valid(monkeypatch):
    for arguments in example_arguments("convert"):
        assert parse_conversion(arguments).command == arguments[0]
    asked: list[Any] = []
    monkeypatch.setattr(report, "write_again", lambda *given, **options: asked.append(given))
    monkeypatch.setattr(
        "pmc_jax.reporting.pareto.write_comparison", lambda *g, **_: asked.append(g)
    )
    monkeypatch.setattr(
        "pmc_jax.reporting.ablation.write_ablation", lambda *g, **_: asked.append(g)
    )
    for arguments in example_arguments("report"):
        assert report.main(arguments) == 0
    assert asked == [
        (Path("runs/demo"),),
        ([Path("runs/pmc"), Path("runs/npo")], Path("comparison")),
        ([Path("runs/ablation_samples")], "method.samples", Path("ablation")),
    ]


def test_what_the_table_of_commands_names_exists():
    for name, command in COMMANDS.items():
        groups = {"adapter", "experiment", "method", "model", "data", "evaluation", "sweep"}
        assert set(command.groups) <= groups
        schema = SCHEMAS.get(name)
        known = set(flat(schema())) if schema else set()
        known |= {key.partition(".")[0] for key in known} | methods_settings("pmc")
        assert set(command.unused) <= known


# --- values


BOUNDS = {
    "max_length": ("evaluate", 2, True), "confidence": ("evaluate", 0.75, True),
    "seed": ("train", 0, True), "n": ("ask", 1, True), "decode_batch": ("ask", 1, True),
    "people": ("draft", 1, True),
    "prompt_tokens": ("plan", 1, True), "tries": ("plan", 0, True),
    "temperature": ("ask", 0, True), "top_k": ("ask", 0, True), "top_p": ("ask", 0, False),
    "max_new_tokens": ("ask", 1, True), "method.samples": ("pmc", 1, True),
    "method.temperature": ("pmc", 0, False), "method.top_k": ("pmc", 0, True),
    "method.top_p": ("pmc", 0, False), "method.max_new_tokens": ("pmc", 1, True),
    "method.selection_temperature": ("pmc", 0, True), "method.min_len": ("pmc", 0, True),
    "method.retain_weight": ("gd", 0, True), "method.retain_per_forget": ("gd", 0, True),
    "method.final_temperature": ("pmc", 0, False), "method.beginnings": ("pmc", 0, True),
    "method.final_retain_weight": ("pmc", 0, True), "method.beta": ("npo", 0, False),
    "method.alpha": ("wga", 0, True), "method.beta1": ("satimp", 0, True),
    "method.beta2": ("satimp", 0, True), "method.skipped_tokens": ("ceu", 0, True),
    "method.kept": ("altpo", 1, True), "method.layer": ("rmu", 0, True),
    "method.trained_layers": ("rmu", 1, True), "method.steering": ("rmu", 0, True),
    "training.epochs": ("train", 0, True), "training.batch_size": ("train", 1, True),
    "training.micro_batch": ("train", 1, True),
    "training.accumulation": ("train", 1, True), "training.max_length": ("train", 2, True),
    "training.decode_batch": ("train", 1, True), "training.wave": ("train", 0, True),
    "training.chunk": ("train", 1, True), "optimizer.learning_rate": ("train", 0, True),
    "optimizer.warmup_epochs": ("train", 0, True), "optimizer.weight_decay": ("train", 0, True),
    "optimizer.epsilon": ("train", 0, False), "optimizer.max_grad_norm": ("train", 0, False),
    "evaluation.max_new_tokens": ("train", 1, True), "evaluation.decode_batch": ("train", 1, True),
    "evaluation.attack_samples": ("evaluate", 0, True),
    "evaluation.attack_temperature": ("evaluate", 0, False),
    "evaluation.attack_top_k": ("evaluate", 0, True),
    "evaluation.attack_top_p": ("evaluate", 0, False), "robustness.examples": ("evaluate", 1, True),
    "robustness.batch_size": ("evaluate", 1, True),
    "robustness.learning_rate": ("evaluate", 0, False), "checkpoints.every": ("train", 1, True),
    "checkpoints.keep": ("train", 1, True), "distributed.num_processes": ("train", 1, True),
    "distributed.process_id": ("train", 0, True),
    "distributed.heartbeat_timeout_seconds": ("train", 5, True),
    "distributed.initialization_timeout_seconds": ("train", 1, True),
}  # fmt: skip
"""Key: (command or method, lower bound, whether the bound itself is allowed)."""


def settings_with(name: str) -> Any:
    """The default settings of a command, or of a run with a method."""
    if name in METHODS:
        return Config(method=METHODS[name]())
    config = SCHEMAS[name]()
    has_method = isinstance(config, Config)
    return dataclasses.replace(config, method=METHODS["pmc"]()) if has_method else config


def with_value(name: str, key: str, value: Any) -> Any:
    """The same settings with one value replaced."""
    config = settings_with(name)
    group, _, field = key.rpartition(".")
    changed = dataclasses.replace(getattr(config, group) if group else config, **{field: value})
    return dataclasses.replace(config, **{group: changed}) if group else changed


def is_whole(name: str, key: str) -> bool:
    """Whether a setting is an integer."""
    field = {key: field for key, field, _ in settings.fields_of(settings_with(name))}[key]
    return "int" in str(field.type)


@pytest.mark.parametrize("key", BOUNDS)
def test_lower_bounds(key):
    name, least, allowed = BOUNDS[key]
    words = f"expected {'at least' if allowed else 'more than'} {least:g}"
    whole = is_whole(name, key)
    below = (least - 1,) if whole else (least - 0.5, float("nan"))
    for value in (*below, *(() if allowed else (float(least),))):
        with pytest.raises(UserError) as error:
            check_values(with_value(name, key, value))
        assert str(error.value) == f"{key}={value}: {words}"
    check_values(with_value(name, key, (least if whole else float(least)) if allowed else 1e-9))


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("ask", "top_p", 1.5, "at most 1"),
        ("pmc", "method.top_p", 1.5, "at most 1"),
        ("evaluate", "evaluation.attack_top_p", 1.1, "at most 1"),
        ("evaluate", "confidence", 1.0, "less than 1"),
        ("train", "seed", 2**32, "less than 2**32"),
        ("rmu", "method.retain_loss", "l2", "one of activations, nll, kl"),
        ("npo", "method.retain_loss", "activations", "one of nll, kl"),
        ("altpo", "method.prompt", "none", "one of auto, instruct, question"),
        ("finetune", "method.pairs", "some", "one of all, retain, forget"),
        ("train", "model.dtype", "int8", "one of auto, float32, bfloat16, float64"),
        ("train", "model.remat", "some", "one of none, dots, full"),
        ("train", "data.format", "csv", "one of tofu, files"),
        ("train", "prompt.template", "none", "one of auto, chat, plain"),
        ("train", "optimizer.schedule", "cosine", "one of linear, constant"),
        ("train", "optimizer.moment_dtype", "int8", "one of float32, bfloat16"),
        ("train", "training.gradient_dtype", "int8", "one of float32, bfloat16"),
        ("evaluate", "suite", "all", "one of quick, paper, tofu, attacks, full"),
    ],
)
def test_other_bounds_and_choices(name, key, value, words):
    with pytest.raises(UserError) as error:
        check_values(with_value(name, key, value))
    assert str(error.value) == f"{key}={value}: expected {words}"


def test_defaults_are_within_their_bounds():
    for kind in (*SCHEMAS.values(), *METHODS.values()):
        assert settings.check(kind()) is None, kind


def test_bounds_of_one_s_own_settings():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        """Nested.

        Attributes:
            rate, power: a number,
                over two lines.
        """

        rate: float = bounded(0.5, above=0, below=1)
        power: int | None = bounded(None, most=2)

    @dataclasses.dataclass(frozen=True)
    class Outer(Inner):
        """An outer one.

        Attributes:
            rate: another number.
            mode: a name: of two.

        What follows is no attribute:
            power: nothing.
        """

        mode: str | None = one_of(None, "a", "b")
        inner: Inner = dataclasses.field(default_factory=Inner)

    assert descriptions(Outer) == {
        "rate": "another number.", "power": "a number, over two lines.", "mode": "a name: of two.",
    }  # fmt: skip
    settings.check(Outer())
    for broken, message in (
        (Outer(rate=0.0), "rate=0.0: expected more than 0"),
        (Outer(rate=1.0), "rate=1.0: expected less than 1"),
        (Outer(power=3), "power=3: expected at most 2"),
        (Outer(mode="c"), "mode=c: expected one of a, b"),
        (Outer(inner=Inner(power=3)), "inner.power=3: expected at most 2"),
    ):
        with pytest.raises(UserError) as error:
            settings.check(broken)
        assert str(error.value) == message
    assert flat(Outer()) == {"rate": 0.5, "power": None, "mode": None, "inner.rate": 0.5,
                             "inner.power": None}  # fmt: skip
    assert nested(flat(Outer())) == dataclasses.asdict(Outer())


def test_two_spellings_of_a_path_are_the_same_setting():
    @dataclasses.dataclass(frozen=True)
    class Paths:
        """Paths."""

        one: str | None = path_to(None)
        several: Any = dataclasses.field(default=None, metadata={"path": True})
        text: str = ""

    given = Paths("runs/./a//", ["b/", "c/../d"], "runs/./a/")
    assert settings.recorded(given) == {
        "one": "runs/a", "several": ["b", "d"], "text": "runs/./a/",
    }  # fmt: skip
    assert settings.recorded(Paths()) == {"one": None, "several": None, "text": ""}
    assert settings.recorded(Paths(one="")) == {"one": "", "several": None, "text": ""}
    found = recorded(Config(model=ModelSource(path="org/name/")))
    assert found["model.path"] == "org/name" and not any("distributed" in key for key in found)


def test_the_keys_that_are_paths_or_free_text():
    paths = {
        key
        for schema in SCHEMAS.values()
        for key, field, _ in settings.fields_of(schema())
        if field.metadata.get("path")
    }
    paths |= {
        f"method.{field.name}"
        for kind in METHODS.values()
        for field in dataclasses.fields(kind)
        if field.metadata.get("path")
    }
    assert paths == {
        "model.path", "compare", "retain_logs", "reference_model", "data.path", "data.forget",
        "data.retain", "data.world_facts", "data.real_authors", "data.holdout", "data.text",
        "method.refusals", "method.alternatives",
    }  # fmt: skip
    free = {
        key
        for schema in SCHEMAS.values()
        for key, setting in settings_of_schema(schema).items()
        if setting.free_text
    }
    assert free == {"question", "prefix", "person", "others", "prompt.system", "prompt.question",
                    "prompt.answer", "method.instruction"}  # fmt: skip


# --- errors


MISTAKES = {
    "option": (["train", "--foo"], r"unrecognized arguments: --foo; pmc train --help"),
    "choice of an option": (["train", "--cfg", "jb"], r"argument --cfg/-c: invalid choice: 'jb'"),
    "no key": (["train", "demo"], r"demo: expected KEY=VALUE; pmc train --help lists the keys"),
    "added key": (["train", "+training.epoch=3"], r"key training\.epoch; .*is training\.epochs"),
    "printed": (["train", "--cfg", "job", "seeed=1"], r"key seeed; the nearest valid key is seed"),
    "sweep, key": (["train", "-m", "seeed=1,2"], r"key seeed; the nearest valid key is seed"),
    "sweep, type": (["train", "-m", "seed=1,x"], r"seed=x: expected an integer$"),
    "sweep, bound": (
        ["train", "seed=1,2", "-m", "training.decode_batch=1,0"], r"training\.decode_batch=0: ",
    ),
    "sweep, group": (["train", "sweep=nop"], r"sweep=nop: expected one of ablation_epochs, "),
    "no sweep": (["train", "seed=1,2"], r"seed=1,2: expected an integer; several values need -m$"),
    "missing": (["train", "experiment=own"], r"model\.path is missing; give model\.path=… \(a Hug"),
    "missing data": (["train", "experiment=own", "model.path=x", "data.forget=y"],
                     r"data\.retain is missing; give data\.retain=…"),
    "group": (["evaluate", "model=gpt2"], r"model=gpt2: expected one of bundled, .*smollm2_135m$"),
    "required group": (["plan"], r"experiment=NAME is missing; expected one of demo, own, "),
    "plan": (["plan", "experiment=demo", "topolgy=x"], r"the nearest valid key is topology"),
    "help": (["train", "--help", "method=nop"], r"method=nop: expected one of altpo, .*npo"),
    "ask": (["ask", "quetsion=hi"], r"the nearest valid key is question"),
    "world": (["world"], r"out is missing; give out=… \(a new or empty directory\)"),
    "report": (["report"], r"arguments are required: DIRECTORY; pmc report --help explains"),
    "report, option": (["report", "x", "--foo"], r"unrecognized arguments: --foo"),
    "pareto": (["report", "pareto"], r"required: RUNS; pmc report pareto --help explains"),
    "ablation": (["report", "ablation", "x", "--over"], r"argument --over: expected one argument"),
    "convert": (["convert"], r"arguments are required: COMMAND; pmc convert --help explains"),
    "conversion": (["convert", "form-hf"], r"invalid choice: 'form-hf' .*'from-hf', 'to-hf'"),
    "destination": (["convert", "to-hf", "x"], r"required: DST; pmc convert to-hf --help"),
    "mesh": (["convert", "from-hf", "x", "y", "--mesh", "3"], r"mesh=3: expected DATAxMODEL"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(name, tmp_path, monkeypatch, capsys):
    arguments, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    # The conversion's own settings of JAX are not for this process.
    monkeypatch.setattr("convert.__main__.main.__defaults__", ([],), raising=False)
    status, out, err = pmc(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(message, err), err
    assert not list(tmp_path.iterdir())


def test_options_may_stand_anywhere(tmp_path, monkeypatch):
    seen = []
    main = entry_point(lambda cfg: seen.append((cfg.seed, cfg.name)), "train", Config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "seed=1,2", "-m", "name=a,b"])
    main()
    assert seen == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_convert_reports_its_own_errors(tmp_path, capsys):
    assert convert(["inspect", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
