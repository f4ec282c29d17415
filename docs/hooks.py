"""For mkdocs: pages from outside `docs/`, formulas without scripts, long names that wrap."""

import html
import os
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "benchmarks/LOG.md": "benchmarks/LOG.md",
    "benchmarks/comparison.csv": "benchmarks/comparison.csv",
    "benchmarks/growth.png": "benchmarks/growth.png",
    "benchmarks/real_model.csv": "benchmarks/real_model.csv",
    "benchmarks/real_model.json": "benchmarks/real_model.json",
    "examples/compare_models.py": "examples/compare_models.py",
    "examples/extending/my_unlearning.py": "examples/extending/my_unlearning.py",
    "examples/extending/run.py": "examples/extending/run.py",
    "examples/unlearn_your_model.py": "examples/unlearn_your_model.py",
}
"""Files of the repository by their place in the site."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
INLINE_CODE = re.compile(r"(?<=<code>)[^<\n]+(?=</code>)")

MENDED = {
    "<mi>log</mi>": '<mi>log</mi><mspace width="0.17em"/>',
    "<mi>&#x0007E;</mi>": "<mo>&#x223C;</mo>",
}
"""What `latex2mathml` writes without the space that TeX has around it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside `docs/`."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = Path(page.file.abs_src_path or "").parent
    sources = {Path(file.abs_src_path).resolve(): file for file in files if file.abs_src_path}

    def in_site(link: re.Match[str]) -> str:
        place = sources.get((here / link["path"]).resolve())
        if place is None:
            return link[0]
        start = os.path.dirname(page.file.src_uri)
        return os.path.relpath(place.src_uri, start or ".") + (link["anchor"] or "")

    return LINK.sub(in_site, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write TeX as MathML, which browsers show without a script, and let long names wrap."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        mathml = latex2mathml.converter.convert(html.unescape(found["tex"]), display=display)
        for written, meant in MENDED.items():
            mathml = mathml.replace(written, meant)
        return mathml

    content = INLINE_CODE.sub(lambda code: code[0].replace("_", "_<wbr>"), content)
    return FORMULA.sub(formula, content)
