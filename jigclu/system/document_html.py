"""Documents as one HTML page, without scripts and without references to other files."""

import base64
import html
import re
from collections.abc import Sequence

from jigclu.system import charts
from jigclu.system.documents import (
    Block,
    Bullets,
    Charts,
    Code,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)

# Also a percentage, with a deviation, a size, and a time.
_NUMBER = re.compile(
    r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%| [kM]B)?( ± [\d.,e+-]+%?)?|(\d+ days?, )?\d+:\d\d:\d\d"
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --muted: #5c5c60; --page: #ffffff;
  --card: #f5f5f7; --line: #dcdce0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --muted: #a5a5aa; --page: #17171a; --card: #222226; --line: #3a3a40; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 18px; margin: 36px 0 10px; }
summary { cursor: pointer; margin: 28px 0 10px; }
summary h2 { display: inline; }
.summary { font-size: 17px; color: var(--muted); margin: 0; }
p, ul { max-width: 75ch; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; overflow-wrap: break-word; }
th, td { text-align: left; vertical-align: top; padding: 5px 18px 5px 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
td { max-width: 60ch; }
td:first-child { white-space: nowrap; }
td:last-child { min-width: 26ch; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; min-width: 0; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; white-space: pre-wrap;
  font: 13px/1.5 ui-monospace, monospace; }
.charts { display: grid; gap: 20px 28px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.charts svg { display: block; width: 100%; height: auto; max-width: 560px; }
figure { margin: 16px 0; }
figure img { min-width: min(100%, 320px); max-width: 100%; height: auto; border-radius: 6px;
  background: var(--card); }
figcaption { color: var(--muted); }
"""


def to_html(document: Document) -> str:
    """Returns a document as an HTML page."""
    title = html.escape(document.title)
    sections = "\n".join(_section(section) for section in document.sections if section.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{title}</h1>\n<p class="summary">{html.escape(document.summary)}</p>\n'
        f"{sections}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>"
    blocks = "\n".join(map(_block, section.blocks))
    if section.is_folded:
        return f"<details>\n<summary>{heading}</summary>\n{blocks}\n</details>"
    return f"<section>\n{heading}\n{blocks}\n</section>"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"
        case Table():
            return _table(block)
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Charts(drawn):
            return f'<div class="charts">{"".join(map(charts.draw, drawn))}</div>'
        case Picture(caption, _, png):
            data = base64.b64encode(png).decode()
            return (
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )


def _table(table: Table) -> str:
    columns = zip(*table.rows, strict=True)
    kinds = [' class="number"' if _are_numbers(column) else "" for column in columns]
    header, *rows = (
        [f"{kind}>{html.escape(text)}" for kind, text in zip(kinds, cells, strict=True)]
        for cells in (table.header, *table.rows)
    )
    head = "".join(f"<th{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _are_numbers(column: Sequence[str]) -> bool:
    """Returns whether the cells of a column are numbers, some of which may be missing."""
    return any(column) and all(not text or _NUMBER.fullmatch(text) for text in column)
