"""`mosaic why REQUEST_ID`: the thread from an answer back to its sources."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from mosaic.cli.platform import chosen, with_settings
from mosaic.monitoring.thread import Thread
from mosaic.monitoring.thread import why as find_thread
from mosaic.platform.parts import build_parts


@click.command()
@with_settings
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def why(file: Path | None, storage: str | None, home: str | None, request_id: str, as_json: bool) -> None:
    """Show what the answer to REQUEST_ID came from."""
    parts = build_parts(chosen(file, storage, home))
    thread = find_thread(parts.tables, parts.catalog, request_id)
    if as_json:
        click.echo(thread.model_dump_json(indent=2))
    else:
        Console().print(as_tree(thread))


def as_tree(thread: Thread) -> Tree:
    """The thread as rich draws a tree."""
    facts = ", ".join(f"{key} {_shown(value)}" for key, value in thread.facts.items() if value not in (None, []))
    label = escape(f"{thread.label} (withheld)" if thread.withheld else thread.label)
    tree = Tree(f"{label}  [dim]{escape(facts)}[/]" if facts else label)
    for part in thread.came_from:
        tree.add(as_tree(part))
    return tree


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return " ".join(_shown(one) for one in value)
    return str(value)
