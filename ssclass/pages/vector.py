"""A matplotlib figure as SVG inside a page: its text stays text, and its colours follow the reader's scheme."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

CANDIDATE, CHAMPION, PROMOTED, MUTED, GRID = "#1f6fb4", "#a35200", "#b8860b", "#6a6a6a", "#dcdcdc"
"""The colours of charts on white."""
OTHERS = ("#1f6fb4", "#a35200", "#2a7d46", "#8b3fa8", "#b3283f", "#5b6b00", "#00757a", "#7a5a3a")
"""Colours of classes, told apart by persons who see no red or green by their order and their names."""
SCHEME = {
    "#000000": "ink",
    "#ffffff": "paper",
    CANDIDATE: "c0",
    CHAMPION: "c1",
    "#2a7d46": "c2",
    "#8b3fa8": "c3",
    "#b3283f": "c4",
    "#5b6b00": "c5",
    "#00757a": "c6",
    "#7a5a3a": "c7",
    PROMOTED: "star",
    MUTED: "muted",
    "#808080": "muted",
    GRID: "line",
    "#cccccc": "line",
}
"""Colour in a figure → variable of templates/style.css, which has a value for each scheme."""
_NAMED = re.compile(r' id="([^"]*)"')
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')


@dataclass(frozen=True)
class Chart:
    """A chart of a page. `words`: what it shows, for whoever does not see it. `width`: its own, in CSS pixels."""

    name: str
    title: str
    words: str
    svg: Markup
    width: int
    figure: Figure


def chart(name: str, figure: Figure, title: str, words: str) -> Chart:
    """Make a chart from a figure; `name` is unique on the page."""
    import matplotlib
    from markupsafe import Markup

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    size = _SIZE.match(text)
    width = round(float(size[1]) * 4 / 3) if size else 480
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for colour, variable in SCHEME.items():
        text = text.replace(colour, f"var(--{variable})")
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", text))
    text = _NAMED.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r"([\"(])#([^\")]+)([\")])", rf"\1#{name}-\2\3", text)
    return Chart(name, title, words, Markup(text), width, figure)
