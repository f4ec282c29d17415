"""The templates of all pages, which share `layout.html.j2` and `pieces.html.j2`."""

import re

import jinja2
from markupsafe import Markup


def page_template(name: str) -> jinja2.Template:
    """A template of this package, which escapes everything that is not `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pmc_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["titles"] = titles
    return environment.get_template(name)


def titles(html: str) -> list[tuple[str, Markup]]:
    """(id, title) of every section of a page that these templates have written."""
    return [(id, Markup(text)) for id, text in re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', html)]
