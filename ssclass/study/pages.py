"""A page of headings, texts, tables and pictures, as markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1.5rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13.5px }
th, td { padding: .28rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top }
td:first-child { white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.strong { background: #eef5ee; font-weight: 600 }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0 }
figure { margin: 0 } figure img { display: block; max-width: 100%; border-radius: 3px }
figcaption { font-size: 12.5px; color: #444; max-width: 18rem; overflow-wrap: anywhere; white-space: pre-line }
.charts figcaption { max-width: none } code { font-size: 12.5px; background: #f4f4f4; padding: 0 .2rem }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG with its caption; `width` in CSS pixels, where it is not shown at its own size."""

    data: bytes
    caption: str = ""
    width: int | None = None

    @property
    def kind(self) -> str:
        """The ending of its file name."""
        return "png" if self.data.startswith(b"\x89PNG") else "jpg"


@dataclass
class Page:
    """A page that is built top to bottom; `pictures` are by file name without its ending."""

    title: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    _markdown: list[str] = field(default_factory=list)
    _html: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._markdown.append(f"## {text}")
        self._html.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph; `code` stands between backticks."""
        self._markdown.append(text)
        self._html.append(f"<p>{_inline(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], strong: Sequence[int] = ()) -> None:
        """Add a table, with columns of numbers to the right. `strong`: the rows to highlight."""
        if not rows:
            self.text("None.")
            return
        cells = [[_cell(value) for value in row] for row in rows]
        right = [
            all(row[at].lstrip("+−-.<").startswith(tuple("0123456789")) or row[at] in ("", "–") for row in cells)
            for at in range(len(columns))
        ]
        lines = [
            "| " + " | ".join(columns) + " |",
            "|" + "|".join("---:" if is_number else "---" for is_number in right) + "|",
        ]
        for at, row in enumerate(cells):
            shown = [f"**{value}**" if at in strong and value else value for value in row]
            lines.append("| " + " | ".join(value.replace("|", "\\|") for value in shown) + " |")
        self._markdown.append("\n".join(lines))

        def line(tag: str, row: Sequence[str]) -> str:
            side = [' class="n"' if is_number else "" for is_number in right]
            return "".join(f"<{tag}{to}>{_inline(value)}</{tag}>" for to, value in zip(side, row, strict=True))

        mark = ' class="strong"'
        body = "".join(f"<tr{mark if at in strong else ''}>{line('td', row)}</tr>" for at, row in enumerate(cells))
        self._html.append(
            f'<div class="wide"><table><thead><tr>{line("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def show(self, pictures: dict[str, Picture], *, charts: bool = False) -> None:
        """Add pictures side by side; markdown names them as files beside it."""
        self.pictures |= pictures
        self._markdown += [
            f"![{(picture.caption or name).splitlines()[0]}]({name}.{picture.kind})"
            for name, picture in pictures.items()
        ]
        shown = []
        for name, picture in pictures.items():
            kind = "jpeg" if picture.kind == "jpg" else "png"
            source = f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"
            width = f' width="{picture.width}"' if picture.width else ""
            caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
            shown.append(f'<figure><img src="{source}" alt="{escape(name)}"{width}>{caption}</figure>')
        self._html.append(f'<div class="pictures{" charts" if charts else ""}">{"".join(shown)}</div>')

    def markdown(self) -> str:
        """The page as markdown."""
        return "\n\n".join([f"# {self.title}", *self._markdown]) + "\n"

    def html(self) -> str:
        """The page as one HTML file, its pictures inside."""
        title = escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
            f"<body><h1>{title}</h1>\n{chr(10).join(self._html)}\n</body></html>\n"
        )

    def write_pictures(self, folder: Path) -> None:
        """Write each picture as a file."""
        for name, picture in self.pictures.items():
            (folder / f"{name}.{picture.kind}").write_bytes(picture.data)


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode pixels uint8 [h, w, 3] as a PNG file."""
    return _encoded(image, "PNG")


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode pixels uint8 [h, w, 3] as a JPEG file."""
    return _encoded(image, "JPEG", quality=88)


def drawn(figure: Figure) -> bytes:
    """Encode a matplotlib figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _encoded(image: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def _cell(value: object) -> str:
    return "–" if value is None else str(value)


def _inline(text: str) -> str:
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
