"""`mosaic why REQUEST_ID`: the thread from an answer back to its sources."""

from pathlib import Path

import click
from rich.console import Console
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
    facts = ", ".join(f"{key} {value}" for key, value in thread.facts.items() if value is not None)
    tree = Tree(f"{thread.label}  [dim]{facts}[/]" if facts else thread.label)
    for part in thread.came_from:
        tree.add(as_tree(part))
    return tree
