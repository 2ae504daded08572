"""What a report consists of, before it is HTML or Markdown."""

import dataclasses

import matplotlib.figure


@dataclasses.dataclass(frozen=True)
class Value:
    """A table's cell.

    Attributes:
        text: what it says.
        note: said smaller beneath it.
        best: whether it is the best of its column.
        colour: of the swatch before it; none if empty.
        numeric: whether it lines up to the right.
        muted: whether it steps back, as figures of others do.
    """

    text: str
    note: str = ""
    best: bool = False
    colour: str = ""
    numeric: bool = True
    muted: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values under a header, with a caption. A row of one value heads those beneath it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it lines up to the right, as in its first whole row."""
        for row in self.rows:
            if len(row) == len(self.header):
                return tuple(value.numeric for value in row)
        return (False,) * len(self.header)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure. `name` is its file's stem, `description` is read out to who cannot see it."""

    name: str
    figure: matplotlib.figure.Figure
    caption: str
    description: str


@dataclasses.dataclass(frozen=True)
class Prose:
    """A paragraph; `notice` makes it stand out, as what is missing should."""

    text: str
    notice: bool = False


@dataclasses.dataclass(frozen=True)
class Code:
    """Text to be copied as it is."""

    text: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a summary."""

    summary: str
    blocks: tuple["Block", ...]


Block = Table | Picture | Prose | Code | Details


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: what was found, in sentences, then what it is read off."""

    identifier: str
    title: str
    findings: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class KeyFigure:
    """A number for the top of the page."""

    label: str
    value: str
    note: str
    colour: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole of it."""

    title: str
    lead: str
    key_figures: tuple[KeyFigure, ...]
    sections: tuple[Section, ...]
