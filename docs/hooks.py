"""What MkDocs shows beside the pages in docs/: the README as its home, and the benchmarks' figures.

Links are written as they lead in the repository; here they are turned to the pages, and those to sources become text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parents[1]
ADDED = {"index.md": "README.md", "benchmarks.md": "benchmarks/README.md"}  # the page and its source
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose source lies elsewhere in the repository."""
    for page, source in ADDED.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page."""
    return turned(markdown, page.file.src_uri)


def turned(markdown: str, page: str) -> str:
    """The text of a page with its links as the documentation has them.

    Args:
        markdown: the text, with links as they lead in the repository.
        page: its name in the documentation.
    """
    source = posixpath.dirname(ADDED.get(page, f"docs/{page}"))
    pages = {source: page for page, source in ADDED.items()}

    def link(found: re.Match[str]) -> str:
        mark, text, target, anchor = found.groups(default="")
        path = posixpath.normpath(posixpath.join(source, target))
        if not path.startswith("docs/") and path not in pages:
            return text
        there = posixpath.relpath(pages.get(path, path.removeprefix("docs/")), posixpath.dirname(page) or ".")
        return f"{mark}[{text}]({there}{anchor})"

    return _LINK.sub(link, markdown)
