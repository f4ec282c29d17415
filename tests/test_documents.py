"""The documents name tests, files, sections and configurations that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
GROUPS = ("data", "experiment", "method", "model", "sweep")

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


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


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 1000
