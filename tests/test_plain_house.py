"""The layout of the code: which file may import which, found by reading the sources."""

import ast
import graphlib
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmc_jax.unlearning.method import Method, methods

ROOT = Path(__file__).parents[1]
PACKAGES = ("pmc_jax", "convert", "benchmarks", "tests")
COMMANDS = ("train", "evaluate", "ask", "draft", "report", "plan", "world")
OWN_FILES = ("pmc_jax/unlearning/baselines/", "pmc_jax/unlearning/pmc/")
"""The directories of the methods."""


def sources(*places: str) -> list[str]:
    """The Python files in these directories, as paths from the root."""
    found = (path for place in places for path in (ROOT / place).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def module_of(path: str) -> str:
    """`a.b` for a/b.py and for a/b/__init__.py."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import of the project's own; name is None for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            found = [
                (f"{node.module}.{alias.name}", None)
                if is_module(f"{node.module}.{alias.name}")
                else (node.module, alias.name)
                for alias in node.names
            ]
        else:
            continue
        yield from ((module, name) for module, name in found if module.split(".")[0] in PACKAGES)


# Methods


def all_subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(all_subclasses, kind.__subclasses__()))


NAMES = set(methods())
CLASSES = {kind.__name__ for kind in all_subclasses(Method) - {Method}}


def called(node: ast.expr) -> str:
    """The last part of a name: `name` of `config.method.name` and of `settings["method.name"]`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript | ast.Call):
        keys = [node.slice] if isinstance(node, ast.Subscript) else node.args
        texts = [key.value for key in keys if isinstance(key, ast.Constant)]
        return next((text for text in texts if isinstance(text, str)), called_by(node))
    return ""


def called_by(node: ast.Subscript | ast.Call) -> str:
    return called(node.value if isinstance(node, ast.Subscript) else node.func)


def is_name_of_method(node: ast.expr) -> bool:
    """`method.name`, `config.method.name`, `settings["method.name"]`, `method_name`."""
    if isinstance(node, ast.Attribute) and node.attr == "name":
        return "method" in called(node.value)
    return called(node) in ("method.name", "method_name")


def is_own_name(node: ast.expr) -> bool:
    """`type(method).name`, with which a method compares its own name."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and called(node.value.func) == "type"
    )


def names_method(node: ast.AST) -> bool:
    """A method's name as a string, or a collection that contains one."""
    if isinstance(node, ast.Constant):
        return node.value in NAMES
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(names_method, node.elts))
    return False


def names_class(node: ast.AST) -> bool:
    return any(
        called(part) in CLASSES
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    )


def compares(sides: list[ast.expr]) -> bool:
    """Whether a comparison asks which method something is."""
    words = map(called, sides)
    if any(map(names_method, sides)) and any("method" in word or "name" in word for word in words):
        return True
    if any(map(is_name_of_method, sides)) and not any(map(is_own_name, sides)):
        return True
    return any(map(names_class, sides))


def asks(node: ast.AST) -> bool:
    """Whether an expression asks which method it has."""
    match node:
        case ast.Call(func=function, args=[_, kinds]):
            return called(function) in ("isinstance", "issubclass") and names_class(kinds)
        case ast.MatchClass(cls=kind):
            return names_class(kind)
        case ast.MatchValue(value=value):
            return names_method(value)
        case ast.Compare(left=left, comparators=others):
            return compares([left, *others])
        case ast.Dict(keys=keys):
            return sum(names_method(key) for key in keys if key is not None) > 1
    return False


def questions(tree: ast.AST) -> Iterator[ast.AST]:
    """The expressions that ask which method the code has."""
    return filter(asks, ast.walk(tree))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(method, PMC)", "isinstance(m, (int, npo.NPO))", "isinstance(x, PMCSettings)",
        "issubclass(kind, DPO | GA)", "method.name == 'pmc'", "'rmu' != config.method.name",
        "cfg.method.name in other", "settings['method.name'] == other", "type(method) is PMC",
        "settings.get('method.name') == 'ga'", "point.method != 'pmc'", "name in ('ga', 'gd')",
        "match m:\n case PMC(): pass", "match n:\n case 'idk': pass", "{'ga': 1, 'gd': 2}[name]",
    ],
)  # fmt: skip
def test_the_search_finds_questions_about_methods(code):
    assert list(questions(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(method, Method)", "method.name != type(method).name", "method.sees_answers",
        "settings['method.name']", "name == 'rows'", "suite in ('quick', 'full')", "PMC(samples=3)",
    ],
)  # fmt: skip
def test_the_search_leaves_other_code_alone(code):
    assert not list(questions(ast.parse(code)))


def test_no_file_asks_which_method_it_is_but_the_methods_own():
    found = [
        f"{path}:{node.lineno if hasattr(node, 'lineno') else ''} {ast.unparse(node)}"
        for path in sources("pmc_jax")
        if not path.startswith(OWN_FILES) and path != "pmc_jax/unlearning/method.py"
        for node in questions(parsed(path))
    ]
    assert not found


def test_every_method_is_one_file_of_its_own():
    files = {
        name: Path(inspect.getfile(kind)).relative_to(ROOT) for name, kind in methods().items()
    }
    pmc = files.pop("pmc")
    assert pmc.is_relative_to("pmc_jax/unlearning/pmc")
    assert {path.as_posix() for path in files.values()} == {
        f"pmc_jax/unlearning/baselines/{name}.py" for name in files
    }


def test_the_paper_needs_no_training_loop():
    others = ("training", "runs", "reporting", "evaluation", "cli")
    found = [
        f"{path}: {module}"
        for path in sources("pmc_jax/unlearning/pmc")
        for module, _ in imports(parsed(path))
        if module.split(".")[1:2] and module.split(".")[1] in others
    ]
    assert not found


def test_the_paper_is_alone_in_its_directory():
    """The algorithm calls what saves time, which knows nothing of the algorithm."""
    parts = ("settings", "reward", "selection", "memory", "objective", "sampling", "step")
    paper = ROOT / "pmc_jax" / "unlearning" / "pmc"
    assert {path.stem for path in paper.glob("*.py")} == {"__init__", *parts}
    order = [paper.joinpath("__init__.py").read_text().index(f"`{name}`: ") for name in parts]
    assert order == sorted(order)
    options = [f"pmc_jax/unlearning/{name}.py" for name in ("beginnings", "offers")]
    others = [*sources("pmc_jax/unlearning/savings"), *options]
    assert not [
        f"{path}: {module}"
        for path in others
        for module, _ in imports(parsed(path))
        if module.startswith("pmc_jax.unlearning.pmc")
    ]


# Packages


def test_the_top_of_the_package_is_the_api_and_the_commands():
    found = {path.name for path in (ROOT / "pmc_jax").iterdir() if path.is_file()}
    others = ("__init__", "api", "errors", "language_model", "settings", "signatures", "terminal")
    assert found == {"py.typed"} | {f"{name}.py" for name in (*others, *COMMANDS)}


OTHERS_OWN = {"_cache_size", "_replace", "_asdict", "_fields"}
"""Attributes of JAX's compiled functions and of named tuples."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(path: str) -> Iterator[str]:
    """Private names of other directories that a file imports, or uses of what it imports."""
    tree, bound = parsed(path), set()
    here = Path(path).parent
    for module, name in imports(tree):
        home = Path(*module.split("."))
        home = home if (ROOT / home).is_dir() and name is not None else home.parent
        if here in (home, Path(*module.split("."))):
            continue
        bound.add(name or module.rpartition(".")[2])
        if any(map(is_private, [*module.split("."), name or ""])):
            yield f"{path}: {module} {name or ''}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            taken = isinstance(node.value, ast.Name) and node.value.id in bound
            if taken and node.attr not in OTHERS_OWN:
                yield f"{path}:{node.lineno} {ast.unparse(node)}"


def test_private_names_stay_in_their_directory():
    assert not [use for path in sources(*PACKAGES) for use in private_uses(path)]


def test_benchmarks_import_names_that_exist():
    missing = [
        f"{path}: {module} {name}"
        for path in sources("benchmarks")
        for module, name in imports(parsed(path))
        if name is not None and not hasattr(importlib.import_module(module), name)
    ]
    assert not missing


BASE = {"errors", "settings", "signatures", "runtime", "terminal"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "terminal": set(),
    "assets": set(),
    "text": set(),
    "theory": set(),
    "signatures": {"errors", "terminal"},
    "settings": {"errors", "signatures", "terminal"},
    "runtime": {"errors", "settings", "terminal"},
    "model": BASE,
    "data": {*BASE, "assets", "text", "model"},
    "decoding": {*BASE, "model"},
    "convert": {*BASE, "data", "model"},
    "language_model": {*BASE, "assets", "convert", "data", "decoding", "model"},
    "unlearning": {*BASE, "data", "decoding", "language_model", "model", "text"},
    "runs": {*BASE, "data", "model"},
    "training": {*BASE, "data", "language_model", "model", "runs", "unlearning"},
}
ARROWS["planning"] = {*ARROWS["training"], "decoding", "training"}
ARROWS["reporting"] = {*BASE, "data", "runs", "text"}
ARROWS["evaluation"] = {*ARROWS["training"], "decoding", "reporting", "text", "training"}
ARROWS["drafting"] = {*ARROWS["evaluation"], "evaluation"}
ARROWS["api"] = {*ARROWS["evaluation"], "evaluation"}
ARROWS["cli"] = {*ARROWS["api"], "api"}
"""What each part of the code may import. Commands import anything; nothing imports a command."""


def part(module: str) -> str:
    """The part of the code with this module: a subpackage, `convert`, or a module of `pmc_jax`."""
    if module in ("convert.__main__", *(f"pmc_jax.{name}" for name in COMMANDS)):
        return "commands"
    package, *rest = module.split(".")
    return rest[0] if package == "pmc_jax" and rest else package


def arrows() -> dict[tuple[str, str], str]:
    """(importing, imported) parts, each with an example of such an import.

    `pmc_jax/__init__.py` is left out: it imports its names when they are first used, and others
    import only the version from it.
    """
    found = {}
    for path in sources("pmc_jax", "convert"):
        for module, _ in imports(parsed(path)):
            pair = part(module_of(path)), part(module)
            if pair[0] != pair[1] and "pmc_jax" not in pair:
                found[pair] = f"{path} imports {module}"
    return found


def test_imports_between_parts_point_one_way():
    found = arrows()
    assert not [
        example
        for (importing, imported), example in found.items()
        if importing != "commands" and imported not in ARROWS[importing]
    ]
    list(graphlib.TopologicalSorter(ARROWS).static_order())  # raises CycleError if there is a cycle
    assert {importing for importing, _ in found} <= {*ARROWS, "commands"}
