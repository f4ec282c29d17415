"""What the README and the pages in docs/ name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_and_linked_files_exist(path):
    text = path.read_text("utf-8")
    code = "".join(test.read_text("utf-8") for test in (ROOT / "tests").glob("test_*.py"))
    tests = {name for name in re.findall(r"\btest_[a-z_0-9]+\b(?!\.py)", text)}
    assert not {name for name in tests if f"def {name}(" not in code}
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (path.parent / link).exists()]
