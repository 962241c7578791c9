"""What a page is made of: sections with sentences, pictures and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_lowrank.errors import require
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.phase import new_space

# Inches of a picture: it fills a phone in its width, and stands beside others on a screen.
WIDTH, HEIGHT, DOTS = 4.4, 3.1, 150
# So many colours look as all of them do, in a third of the size; fewer lose thin lines of a colour of their own.
_COLORS = 256


@dataclass(frozen=True)
class Picture:
    """A picture as it stands in a page.

    Attributes:
        uri: the PNG itself, as a data URI.
        alt: what it shows, for who cannot see it.
        caption: what to see in it.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """

    uri: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Table:
    """A table: a row of headings, and rows of words."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: what it is about.
        notes: sentences.
        pictures: pictures, in order.
        table: a table, or None.
        text: lines that keep their breaks, or nothing.
    """

    title: str
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    text: str = ""

    @property
    def anchor(self) -> str:
        """Where a link to the section goes."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Page:
    """Everything that a page shows: a title, facts at its top, and sections."""

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def picture(
    paint: Callable[[Any], Any],
    alt: str,
    caption: str = "",
    *,
    panels: int = 1,
    height: float = HEIGHT,
    space: bool = False,
) -> Picture:
    """Draw a figure and return it as a picture.

    Args:
        paint: draws on its axes; on an array of them where there are several panels.
        alt: what it shows.
        caption: what to see in it; as `alt` if empty.
        panels: one above the other.
        height: of each, in inches.
        space: whether the axes have three dimensions.
    """
    figure, axes = (
        new_space(width=WIDTH, height=height) if space else new_figure(panels, 1, width=WIDTH, height=panels * height)
    )
    paint(axes if space else axes[0, 0] if panels == 1 else axes[:, 0])
    content = io.BytesIO()
    figure.savefig(content, dpi=DOTS, format="png")
    image = require("PIL.Image", "report", "A report").open(content).convert("RGB").quantize(_COLORS)
    packed = io.BytesIO()
    image.save(packed, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Picture(uri, alt, caption or alt, *image.size)
