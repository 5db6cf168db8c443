"""How answers are shown: a table on a terminal, plain columns into a pipe, one JSON document for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mosaic.protocol import Wire

if TYPE_CHECKING:
    import pyarrow as pa

Record = Wire | Mapping[str, Any]

_ROWS = 200
"""Of a table, unless more are asked for."""
_GAP = "  "
_NARROWEST = 10
"""Characters of a terminal for each column; with less, a record is shown a field a line."""
_WIDEST_LABEL = 30
_WIDEST_LINE = 1_000_000


def show(
    records: Sequence[Record], columns: Sequence[str], as_json: bool, *, what: str, limit: int | None = None
) -> None:
    """Several records: all their fields as JSON, or these columns (`spec.location`: a field within a field)."""
    if limit is None:
        limit = len(records) if as_json else _ROWS
    shown = records[:limit]
    if as_json:
        click.echo(dumped([as_plain(record) for record in shown]))
    elif shown:
        rows = [[cell(_within(record, column)) for column in columns] for record in shown]
        print_table([column.rpartition(".")[2].replace("_", " ") for column in columns], rows)
    else:
        click.echo(f"no {what}", err=True)
    if len(records) > len(shown):
        more = len(records) - len(shown)
        click.echo(f"{more:,} more {what} are not shown; --limit {len(records)} shows all", err=True)


def show_one(record: Record, as_json: bool, **more: Any) -> None:
    """One record, a field a line; `more` are fields that are not the record's own."""
    fields = {**_fields(record), **more}
    if as_json:
        click.echo(dumped(as_plain(fields)))
        return
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        for number, line in enumerate(_lines(value)):
            label = name.replace("_", " ") if number == 0 else ""
            click.echo(f"{label:{width}}{_GAP}{line}".rstrip())


def tell(line: str, record: Record, as_json: bool) -> None:
    """What was done: in a sentence, or the record after it."""
    click.echo(dumped(as_plain(record)) if as_json else line)


def dumped(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)


def as_plain(value: Any) -> Any:
    """A record or value as JSON has it; times in UTC."""
    if isinstance(value, Wire):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value


def cell(value: Any) -> str:
    """A value in one line, nothing in it that a terminal would obey."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, Wire):
        value = _fields(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(key))}={cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return clean(str(value))


def as_cells(rows: "pa.Table") -> tuple[list[str], list[list[str]]]:
    """A table's columns and rows as SQL prints them: `true`, nothing for NULL."""
    from mosaic.data.sql_types import strings

    cells = [["" if value is None else clean(value) for value in row] for row in strings(rows)]
    return [clean(name) for name in rows.column_names], cells


def clean(text: str) -> str:
    """Control characters as Python writes them: `\\n`, `\\x1b`."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _fields(record: Record) -> dict[str, Any]:
    return dict(record) if isinstance(record, Mapping) else {name: getattr(record, name) for name in _names(record)}


def _names(record: Wire) -> Sequence[str]:
    return list(type(record).model_fields)


def _within(record: Record, path: str) -> Any:
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def _lines(value: Any) -> list[str]:
    """A value that may take several lines: text as it stands, a list of objects one by one."""
    if isinstance(value, str):
        return [clean(line) for line in value.splitlines()] or [""]
    if isinstance(value, Mapping) and any(isinstance(item, str) and "\n" in item for item in value.values()):
        return [line for key, item in value.items() for line in _entry(str(key), item)]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [cell(item) for item in value]
    return [cell(value)]


def _entry(key: str, value: Any) -> list[str]:
    lines = _lines(value)
    return [f"{clean(key)}={lines[0]}"] if len(lines) == 1 else [f"{clean(key)}=", *(_GAP + line for line in lines)]


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, colours: Mapping[str, str] | None = None
) -> None:
    """Nothing is cut: a terminal folds what is too wide, a pipe gets columns as wide as they are.

    `colours` are those of cells with these texts, on a terminal.
    """
    console = Console()
    if console.is_terminal:
        by_line = len(headings) * _NARROWEST > console.width
        for part in _by_field(headings, rows) if by_line else [_folded(headings, rows, colours or {})]:
            console.print(part)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in [headings, *rows]:
        click.echo(_GAP.join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def print_tree(tree: Tree) -> None:
    """Into a pipe every node is one line."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDEST_LINE
    console.print(tree)


def _folded(headings: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str]) -> Table:
    table = Table(box=None)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style=colours.get(text, "")) for text in row))
    return table


def _by_field(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Table]:
    """A table of two columns for each row, all of one width."""
    width = max(map(len, headings))
    for row in rows:
        table = Table(box=None, show_header=False)
        table.add_column(style="bold", overflow="fold", min_width=min(width, _WIDEST_LABEL))
        table.add_column(overflow="fold")
        for heading, text in zip(headings, row, strict=True):
            table.add_row(Text(heading), Text(text))
        table.add_row()
        yield table
