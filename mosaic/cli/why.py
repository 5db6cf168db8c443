"""`mosaic why REQUEST_ID`: the thread from an answer back to its sources."""

from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.tree import Tree

from mosaic.cli.options import with_access
from mosaic.cli.show import clean, print_tree

if TYPE_CHECKING:
    from mosaic.data.access import Access
    from mosaic.monitoring.thread import Thread


@click.command()
@with_access
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def why(access: "Access", request_id: str, as_json: bool) -> None:
    """Show what the answer to REQUEST_ID came from."""
    from mosaic.data import Tables
    from mosaic.monitoring import thread as threads

    thread = threads.why(Tables(access.storage, access.catalog), access.catalog, request_id)
    if as_json:
        click.echo(thread.model_dump_json(indent=2))
    else:
        print_tree(as_tree(thread))


def as_tree(thread: "Thread") -> Tree:
    """The thread as rich draws a tree."""
    facts = ", ".join(f"{key} {_shown(value)}" for key, value in thread.facts.items() if value not in (None, []))
    label = escape(clean(f"{thread.label} (withheld)" if thread.withheld else thread.label))
    tree = Tree(f"{label}  [dim]{escape(clean(facts))}[/]" if facts else label)
    for part in thread.came_from:
        tree.add(as_tree(part))
    return tree


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return " ".join(_shown(one) for one in value)
    return str(value)
