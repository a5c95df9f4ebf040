"""Write pages of executed notebooks, with their pictures: ``python docs/notebooks.py outputs/notebooks/*.ipynb``."""

from __future__ import annotations

import argparse
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

PAGES = Path(__file__).resolve().parent / "notebooks"
_WIDTH = 960  # pixels of a picture, at most
_BYTES = 60_000  # of a picture's file, at most
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PLAIN = re.compile(r'<style.*?</style>|\n\s*| border="1" class="dataframe"', re.DOTALL)  # tables look as the page's do


def main() -> None:
    """Write a page for each of the named notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="PATH")
    for path in parser.parse_args().notebooks:
        write(path)


def write(path: Path, folder: Path = PAGES) -> None:
    """Write a notebook's page and its pictures; those of before go."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{path.stem}-*.webp"):
        old.unlink()
    cells = nbformat.read(path, as_version=4).cells  # type: ignore[no-untyped-call]
    pictures: list[bytes] = []
    parts: list[str] = []
    heading = ""
    for cell in cells:
        heading = found[-1] if (found := _HEADING.findall(cell.source)) and cell.cell_type == "markdown" else heading
        parts += _cell(cell, path.stem, heading, pictures)
    for number, picture in enumerate(pictures):
        (folder / _name(path.stem, number)).write_bytes(picture)
    (folder / f"{path.stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _cell(cell: NotebookNode, stem: str, heading: str, pictures: list[bytes]) -> list[str]:
    """A cell in Markdown; its pictures are added to ``pictures``, and called by the heading above."""
    if cell.cell_type == "markdown":
        return [cell.source]
    parts = [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {})
        html = data.get("text/html", "")
        if "image/png" in data:
            parts.append(f"![{heading}]({_name(stem, len(pictures))})")
            pictures.append(small(b64decode(data["image/png"])))
        elif html and not html.startswith("<pre"):  # which are progress bars
            parts.append(_PLAIN.sub("", html))
        elif output.get("name") == "stdout":  # not what libraries warn of
            parts.append(f"```text\n{output.text.strip()}\n```")
    return parts


def small(png: bytes) -> bytes:
    """A picture as WebP of at most 960 pixels' width and 60 kB."""
    image = Image.open(BytesIO(png)).convert("RGB")
    image.thumbnail((_WIDTH, _WIDTH * 4), Image.Resampling.LANCZOS)
    for quality in range(85, 5, -10):
        image.save(buffer := BytesIO(), "WEBP", quality=quality, method=6)
        if buffer.tell() <= _BYTES:
            break
    return buffer.getvalue()


def _name(stem: str, number: int) -> str:
    return f"{stem}-{number + 1}.webp"


if __name__ == "__main__":
    main()
