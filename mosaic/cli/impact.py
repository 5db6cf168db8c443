"""`mosaic impact TABLE`: every model version, index and answer that depends on a table, or on some of its rows."""

from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.tree import Tree

from mosaic.cli.options import with_access
from mosaic.cli.show import print_tree

if TYPE_CHECKING:
    from mosaic.data.access import Access
    from mosaic.monitoring.impact import Answers, Dependent, Impact


@click.command()
@with_access
@click.argument("table")
@click.option("--where", help="Only what depends on these rows: a SQL condition, such as \"module = 'os'\".")
@click.option("--version", type=int, help="Of this version of the table.  [default: of any]")
@click.option("--limit", type=int, help="Name so many answers, the newest.  [default: 20]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def impact(
    access: "Access",
    table: str,
    where: str | None,
    version: int | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show what depends on TABLE (`catalog.schema.table`, or `...@version`)."""
    from mosaic.data import Tables
    from mosaic.monitoring import impact as impacts

    tables = Tables(access.storage, access.catalog)
    most = impacts.ANSWERS_NAMED if limit is None else limit
    found = impacts.impact(tables, access.catalog, table, where=where, version=version, limit=most)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        print_tree(as_tree(found))


def as_tree(found: "Impact") -> Tree:
    """The impact as rich draws a tree."""
    version = "" if found.version is None else f", version {found.version}"
    where = "" if found.where is None else f" where {found.where}"
    tree = Tree(escape(f"table {found.table}{version}{where}"))
    for dependent in found.dependents:
        tree.add(_dependent(dependent, by_rows=found.where is not None))
    tree.add(_answers(found.answers))
    if found.cut_off:
        tree.add("[yellow]there is more downstream that was not followed[/]")
    for note in found.notes:
        tree.add(f"[dim]note: {escape(note)}[/]")
    return tree


def _dependent(one: "Dependent", *, by_rows: bool) -> Tree:
    if one.withheld:
        return Tree(f"{one.kind} (withheld)")
    versions = "" if not one.versions else f", version {_range(one.versions)}"
    facts = [f"alias {alias}" for alias in one.aliases]
    if one.matching_rows is not None:
        facts.append(
            f"{one.matching_rows:,} of these rows {'in it' if one.known == 'rows' else 'in what its run read'}"
        )
    elif by_rows:
        facts.append("may or may not depend on these rows")
    if one.kind in ("model", "index"):
        facts.append(_counted(one.answers))
    if one.deleted:
        facts.append("deleted")
    tree = Tree(escape(f"{one.kind} {one.name}{versions}") + f"  [dim]{escape(', '.join(facts))}[/]")
    for origin in one.made_from:
        tree.add(escape(f"made from {origin}"))
    if one.runs:
        tree.add(escape(f"by {', '.join(one.runs)}"))
    return tree


def _answers(answers: "Answers") -> Tree:
    counts = ", ".join(f"{endpoint} {count:,}" for endpoint, count in answers.by_endpoint.items())
    given = f", {answers.given_rows:,} of them given such rows" if answers.given_rows else ""
    tree = Tree(escape(f"{_counted(answers.total)}{given}") + (f"  [dim]{escape(counts)}[/]" if counts else ""))
    for answer in answers.newest:
        facts = f"{answer.time:%Y-%m-%d %H:%M:%S}, {answer.endpoint}, through {' and '.join(answer.through)}"
        known = ", given such rows" if answer.known == "rows" else ""
        tree.add(f"{escape(answer.request_id)}  [dim]{escape(facts + known)}[/]")
    if len(answers.newest) < answers.total:
        tree.add(f"[dim]and {answers.total - len(answers.newest):,} more (--limit, --json)[/]")
    return tree


def _counted(answers: int) -> str:
    return f"{answers:,} answer{'' if answers == 1 else 's'}"


def _range(versions: tuple[int, ...]) -> str:
    if len(versions) < 4:
        return ", ".join(str(version) for version in versions)
    return f"{versions[0]} to {versions[-1]} ({len(versions):,} versions)"
