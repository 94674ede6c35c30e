"""A page of headings, texts, tables, pictures and charts, as markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.pages.templating import render
from ssclass.text import printable

if TYPE_CHECKING:
    from ssclass.pages.vector import Chart

TONES = ("good", "calm", "bad")
"""How a verdict looks; its words say the same."""


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG with its caption; `width` in CSS pixels, where it is not shown at its own size.

    `data` is empty where the photo may not be shown, or is no longer there: then only the caption is.
    """

    data: bytes
    caption: str = ""
    width: int | None = None

    @property
    def kind(self) -> str:
        """The ending of its file name."""
        return "png" if self.data.startswith(b"\x89PNG") else "jpg"

    @property
    def source(self) -> str:
        """The picture as the address of an <img>: the page needs no other file."""
        kind = "jpeg" if self.kind == "jpg" else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"

    @property
    def lines(self) -> list[str]:
        """The caption's lines, fit to be shown."""
        return [printable(line) for line in self.caption.splitlines()]


@dataclass
class Page:
    """A page that is built top to bottom; `pictures` are by file name without its ending."""

    title: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    _blocks: list[dict[str, Any]] = field(default_factory=list)

    def verdict(self, title: str, text: str, tone: str = "calm") -> None:
        """Begin with what the page comes to, in a word and in sentences; `tone` is one of TONES."""
        self._blocks.append({"kind": "verdict", "title": title, "text": text, "tone": tone})

    def heading(self, text: str) -> None:
        """Begin a section."""
        number = sum(block["kind"] == "heading" for block in self._blocks) + 1
        self._blocks.append({"kind": "heading", "text": text, "id": f"section-{number}"})

    def text(self, text: str) -> None:
        """Add a paragraph; `code` stands between backticks."""
        self._blocks.append({"kind": "text", "text": text})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], strong: Sequence[int] = ()) -> None:
        """Add a table, with columns of numbers to the right. `strong`: the rows to highlight."""
        if not rows:
            self.text("None.")
            return
        cells = [["–" if value is None else printable(str(value)) for value in row] for row in rows]
        right = [
            all(row[at].lstrip("+−-.<").startswith(tuple("0123456789")) or row[at] in ("", "–") for row in cells)
            for at in range(len(columns))
        ]
        block = {"kind": "table", "columns": columns, "rows": cells, "right": right, "strong": set(strong)}
        self._blocks.append(block | {"name": self._name("table")})

    def show(self, pictures: dict[str, Picture]) -> None:
        """Add pictures side by side; markdown names them as files beside it."""
        self.pictures |= pictures
        self._blocks.append({"kind": "pictures", "pictures": pictures})

    def draw(self, *charts: Chart) -> None:
        """Add charts side by side. Markdown names them as files beside it."""
        self._blocks.append({"kind": "charts", "charts": charts, "name": self._name("charts")})

    def _name(self, what: str) -> str:
        """The name of a part that a reader can scroll: the section's, and which of its kind it is."""
        heading, number = self.title, 1
        for block in self._blocks:
            if block["kind"] == "heading":
                heading, number = block["text"], 1
            number += block["kind"] == what
        return f"{heading}: {what}" if number == 1 else f"{heading}: {what} {number}"

    def markdown(self) -> str:
        """The page as markdown."""
        made = [f"# {self.title}"]
        for block in self._blocks:
            made += _markdown(block)
        return "\n\n".join(made) + "\n"

    def html(self) -> str:
        """The page as one HTML file, its pictures and charts inside."""
        headings = [block for block in self._blocks if block["kind"] == "heading"]
        return render("page.html", title=self.title, blocks=self._blocks, headings=headings)

    def write_pictures(self, folder: Path) -> None:
        """Write each picture as a file, and each chart as a PNG."""
        for name, picture in self.pictures.items():
            (folder / f"{name}.{picture.kind}").write_bytes(picture.data)
        for block in self._blocks:
            for chart in block.get("charts", ()):
                chart.figure.savefig(folder / f"{chart.name}.png", dpi=110)


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode pixels uint8 [h, w, 3] as a PNG file."""
    return _encoded(image, "PNG")


def jpeg(image: NDArray[np.uint8], quality: int = 88) -> bytes:
    """Encode pixels uint8 [h, w, 3] as a JPEG file. It has no metadata, whatever the photo had."""
    return _encoded(image, "JPEG", quality=quality)


def _encoded(image: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def _markdown(block: dict[str, Any]) -> list[str]:
    if block["kind"] == "verdict":
        return [f"**{block['title']}**", block["text"]]
    if block["kind"] == "heading":
        return [f"## {block['text']}"]
    if block["kind"] == "text":
        return [block["text"]]
    if block["kind"] == "table":
        return [_table(block)]
    if block["kind"] == "pictures":
        return [
            f"![{(picture.caption or name).splitlines()[0]}]({name}.{picture.kind})"
            for name, picture in block["pictures"].items()
        ]
    return [f"![{chart.title}: {chart.words}]({chart.name}.png)" for chart in block["charts"]]


def _table(block: dict[str, Any]) -> str:
    lines = [
        "| " + " | ".join(block["columns"]) + " |",
        "|" + "|".join("---:" if is_number else "---" for is_number in block["right"]) + "|",
    ]
    for at, row in enumerate(block["rows"]):
        shown = [f"**{value}**" if at in block["strong"] and value else value for value in row]
        lines.append("| " + " | ".join(value.replace("|", "\\|") for value in shown) + " |")
    return "\n".join(lines)
