"""Tables for people (Markdown), for programs (JSON), and as a plot."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jigclu.system import files

Cell = str | float | None


class Table(NamedTuple):
    """Measurements of one kind.

    columns: names with units.
    rows: a text or a number per column; None if nothing was measured.
    note: how to read the table.
    panels: groups of columns, each drawn in one panel over the first column.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    note: str
    panels: tuple[tuple[str, ...], ...]


def markdown(table: Table) -> str:
    """Returns a table under its title, with its note."""
    lines = [
        f"## {table.title}",
        "",
        f"| {' | '.join(table.columns)} |",
        "|---" * len(table.columns) + "|",
        *(f"| {' | '.join(map(format_cell, row))} |" for row in table.rows),
        "",
        table.note,
    ]
    return "\n".join(lines)


def format_cell(cell: Cell) -> str:
    """Returns a cell as text: numbers with three digits, rounded to whole ones from 100 on."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if abs(cell) >= 100 or cell == int(cell) else f"{cell:.3g}"


def write_json(path: Path, environment: dict[str, str], tables: Sequence[Table]) -> None:
    """Writes everything, with cells in full precision.

    Raises:
      UserError: the file cannot be written.
    """
    contents = {"environment": environment, "tables": [table._asdict() for table in tables]}
    files.write_file(path, f"{json.dumps(contents, indent=1)}\n".encode())


def plot(tables: Sequence[Table], path: Path) -> Tensor:
    """Draws the panels of all tables: lines over numbers, bars over names.

    Args:
      tables: at least one of them with panels.
      path: of the PNG file to write.

    Returns:
      The same picture, uint8 [3, height, width].

    Raises:
      UserError: the file cannot be written.
    """
    # An optional dependency, used only here; `pyplot` would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(table, columns) for table in tables for columns in table.panels]
    heights = [3.5 if _is_numeric(table) else 1 + 0.3 * len(table.rows) for table, _ in panels]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (table, columns) in zip(all_axes, panels, strict=True):
        axes.set_title(table.title, loc="left", fontsize="medium")
        draw = _draw_lines if _is_numeric(table) else _draw_bars
        draw(axes, table, columns)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    files.write_file(path, file.getvalue())
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1)


def _is_numeric(table: Table) -> bool:
    return bool(table.rows) and not isinstance(table.rows[0][0], str)


def _measurements(table: Table, column: str) -> tuple[list[Any], list[Any]]:
    position = table.columns.index(column)
    # Leave out empty cells, and zeros, which have no logarithm.
    rows = [row for row in table.rows if row[position]]
    return [row[0] for row in rows], [row[position] for row in rows]


def _draw_bars(axes: Any, table: Table, columns: Sequence[str]) -> None:
    names, values = _measurements(table, columns[0])
    axes.barh(names, values)
    axes.invert_yaxis()
    axes.set_xlabel(columns[0])


def _draw_lines(axes: Any, table: Table, columns: Sequence[str]) -> None:
    for column in columns:
        axes.plot(*_measurements(table, column), marker="o", label=column)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(table.columns[0])
    axes.legend()
    axes.grid(alpha=0.3)
