"""The templates of self-contained pages: what fills them is only ever text, and what is missing is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2


def template(folder: Path, name: str) -> jinja2.Template:
    """A page's template, a file in a folder."""
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)
