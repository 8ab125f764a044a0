"""Documents for people, which are written as one HTML page and as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jigclu.system.charts import Bars, Chart


class Paragraph(NamedTuple):
    """Plain text."""

    text: str


class Bullets(NamedTuple):
    """A list of plain texts."""

    items: Sequence[str]


class Table(NamedTuple):
    """Cells of plain text; numbers are aligned to the right.

    header: names of the columns.
    rows: of as many cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(NamedTuple):
    """Text that is shown as it is."""

    text: str


class Charts(NamedTuple):
    """Charts side by side; Markdown has tables of their values instead."""

    charts: Sequence[Chart | Bars]


class Picture(NamedTuple):
    """A picture; the HTML page contains it, and Markdown refers to its file.

    caption: plain text.
    path: of the file, from the folder of the document.
    png: content of the file.
    """

    caption: str
    path: Path
    png: bytes


Block = Paragraph | Bullets | Table | Code | Charts | Picture


class Section(NamedTuple):
    """A part of a document.

    title: plain text.
    blocks: in their order; a section without blocks is left out.
    is_folded: whether the HTML page shows the blocks only on demand.
    """

    title: str
    blocks: Sequence[Block]
    is_folded: bool = False


class Document(NamedTuple):
    """A document.

    title: plain text.
    summary: a sentence below the title.
    sections: in their order.
    """

    title: str
    summary: str
    sections: Sequence[Section]
