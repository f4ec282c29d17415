"""Files, tests, modules, commands and settings that the documents name exist."""

import ast
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import pytest

import pmc_jax
from pmc_jax.cli.commands import COMMANDS
from pmc_jax.cli.config import AskConfig, Config, DraftConfig, PlanConfig, WorldConfig
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.model.trainable import LoRA
from pmc_jax.settings import fields_of
from pmc_jax.unlearning.method import methods, resolve

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CURRENT = [path for path in DOCUMENTS if path.name not in ("CHANGELOG.md", "LOG.md")]
"""All documents except those that name things of the past."""
GROUPS = ("adapter", "data", "evaluation", "experiment", "method", "model", "sweep")
SCHEMAS = {
    "train": Config,
    "evaluate": EvaluateConfig,
    "ask": AskConfig,
    "draft": DraftConfig,
    "plan": PlanConfig,
    "world": WorldConfig,
}
sys.path.append(str(ROOT / "examples/extending"))
METHODS = [*methods().values(), resolve("my_unlearning:MaximumEntropy")]
METHOD_KEYS = {key for kind in METHODS for key, _, _ in fields_of(kind(), "method.")}
ADAPTER_KEYS = {key for key, _, _ in fields_of(LoRA(), "adapter.")}
KEYS = {
    name: {key for key, _, _ in fields_of(schema())} | METHOD_KEYS
    for name, schema in SCHEMAS.items()
}
KEYS = {name: keys | (ADAPTER_KEYS if "adapter" in keys else set()) for name, keys in KEYS.items()}
SECTIONS = {key.partition(".")[0] for keys in KEYS.values() for key in keys if "." in key}
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    """A document's path in the repository."""
    return path.relative_to(ROOT).as_posix()


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
each_current_document = pytest.mark.parametrize("path", CURRENT, ids=name_of)


def code(path: Path) -> str:
    """The code of a document: its blocks, and its spans between backquotes."""
    return "\n".join(found.strip("`") for found in CODE.findall(path.read_text("utf-8")))


def commands(path: Path) -> list[list[str]]:
    """The words of every `pmc` command in a document's code."""
    lines = code(path).replace("\\\n", " ").splitlines()
    calls = (re.search(r"\bpmc [a-z].*?(?= && | &$|; done|$)", line) for line in lines)
    texts = [
        call[0] if call[0].count('"') % 2 == 0 else call[0].rstrip('"') for call in calls if call
    ]
    return [shlex.split(text, comments=True) for text in texts]


def sections(path: Path) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@each_document
def test_named_tests_exist(path):
    text = path.read_text("utf-8")
    code = "".join(test.read_text("utf-8") for test in (ROOT / "tests").glob("test_*.py"))
    tests = set(re.findall(r"\btest_[a-z_0-9]+\b(?!\.py)", text))
    assert not {name for name in tests if f"def {name}(" not in code}
    files = set(re.findall(r"\b(?:tests/)?((?:test_)[a-z_0-9]+\.py)\b", text))
    assert not {name for name in files if not (ROOT / "tests" / name).exists()}


@each_document
def test_linked_files_and_sections_exist(path):
    links = re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text("utf-8"))
    assert not [file for file, _ in links if not (path.parent / file).exists()]
    anchors = [(path.parent / file if file else path, anchor) for file, anchor in links if anchor]
    assert not [(file.name, anchor) for file, anchor in anchors if anchor not in sections(file)]


@each_document
def test_named_configurations_exist(path):
    named = re.findall(rf"\b({'|'.join(GROUPS)})=([a-z0-9_]+)\b(?![.:(])", path.read_text("utf-8"))
    missing = {
        f"{group}={name}"
        for group, name in named
        if not (ROOT / "configs" / group / f"{name}.yaml").exists()
    }
    assert not missing


@each_current_document
def test_named_paths_exist(path):
    roots = "pmc_jax|convert|configs|examples|notebooks|benchmarks|tests|docs"
    named = set(re.findall(rf"(?<![\w/.])(?:{roots})/[\w./-]*", code(path)))
    written = {name for name in named if re.search(r"[A-Z]{3}|/$|\.$", name)}  # patterns
    assert not {name for name in named - written if not (ROOT / name).exists()}


@each_current_document
def test_named_modules_exist(path):
    def exists(name: str) -> bool:
        module, _, attribute = name.rpartition(".")
        try:
            return bool(importlib.import_module(name))
        except ImportError:
            return hasattr(importlib.import_module(module), attribute)

    named = set(re.findall(r"(?<![\w/.:])pmc_jax(?:\.\w+)+", code(path)))
    assert not {name for name in named - {"pmc_jax.NAME"} if not exists(name)}


@each_current_document
def test_named_settings_exist(path):
    known = set().union(*KEYS.values())
    named = re.findall(
        rf"(?<![\w./\"'\]])((?:{'|'.join(SECTIONS)})\.(?!md|py|yaml|json|html|ya?ml)[a-z_0-9]+(?:\.[a-z_0-9]+)*)\b(?!\()",
        code(path),
    )
    assert not {key for key in named if key not in known}


@each_current_document
def test_named_commands_and_their_keys_exist(path):
    for _, name, *words in commands(path):
        assert name in COMMANDS
        keys = {word.partition("=")[0] for word in words if re.match(r"[a-z_.]+=", word)}
        if name in SCHEMAS:
            unknown = keys - KEYS[name] - set(GROUPS)
            assert not {key for key in unknown if not key.startswith("hydra")}, (name, words)


@each_current_document
def test_single_settings_exist(path):
    """`key=value` between backquotes is a setting or an argument of the Python API."""
    functions = (getattr(pmc_jax, name) for name in ("load_model", "unlearn", "evaluate"))
    functions = (*functions, pmc_jax.Dataset.from_files)
    arguments = {name for each in functions for name in inspect.signature(each).parameters}
    known = set().union(*KEYS.values(), GROUPS, arguments)
    known |= {
        "key",
        *(key.partition(".")[2] for key in known),
    }  # for tables of one section's settings
    spans = re.findall(r"`([a-z_.]+)=[^`\n]*`", path.read_text("utf-8"))
    assert not {key for key in spans if key not in known and not key.startswith("hydra")}


def imports(path: Path) -> set[str]:
    """The modules of this repository that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    named |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {name for name in named if name.partition(".")[0] in ("pmc_jax", "convert")}


def test_imports_point_down():
    """Parts import only from their own row of the table in `architecture.md` and the rows below."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    first_cells = re.findall(r"^\| (`.*?`) \|", page, re.M)
    rows = [re.findall(r"`(?:pmc_jax/)?([a-z_]+)(?:/|\.py)`", cell) for cell in first_cells]
    rank = {name: number for number, row in enumerate(rows) for name in row}
    rank["assets"] = rank["data"]  # a directory of data files
    packages = {
        path.name for path in (ROOT / "pmc_jax").iterdir() if (path / "__init__.py").exists()
    }
    assert packages <= rank.keys()
    modules = [*(ROOT / "pmc_jax").rglob("*.py"), *(ROOT / "convert").glob("*.py")]
    entrances = ROOT / "pmc_jax/__init__.py", ROOT / "convert/__main__.py"
    upwards = []
    for path in {*modules} - {*entrances}:
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = parts[1] if parts[0] == "pmc_jax" else "convert"
        for name in imports(path) - {"pmc_jax"}:
            other = name.split(".")[1] if name.startswith("pmc_jax") else "convert"
            if rank[other] < rank[own]:
                upwards.append((path.name, name))
    assert not upwards


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs/api/index.md").read_text("utf-8")
    documented = re.findall(
        r"^::: ([\w.]+)\.(\w+)$(?:\n    options:\n      heading: (\w+))?", page, re.M
    )
    for module, name, heading in documented:
        assert getattr(pmc_jax, heading) is getattr(importlib.import_module(module), name)
    assert {heading for *_, heading in documented} == {*pmc_jax.__all__} - {"__version__", "theory"}


SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "__main__" in path.read_text()
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_a_benchmark_says_what_it_does(name, monkeypatch, capsys):
    """The words of its own docstring, line by line; nothing is run."""
    with mock.patch.dict("os.environ"):
        script = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert script.__doc__.strip() in shown
    assert f"python benchmarks/{name}.py" in script.__doc__


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 1000
