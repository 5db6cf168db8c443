"""`mosaic impact TABLE`: every model version, index and answer that depends on a table, or on some of its rows."""

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from mosaic.cli.platform import chosen, with_settings
from mosaic.monitoring.impact import ANSWERS_NAMED, Answers, Dependent, Impact
from mosaic.monitoring.impact import impact as find_impact
from mosaic.platform.parts import build_parts


@click.command()
@with_settings
@click.argument("table")
@click.option("--where", help="Only what depends on these rows: a SQL condition, such as \"module = 'os'\".")
@click.option("--version", type=int, help="Of this version of the table.  [default: of any]")
@click.option("--limit", type=int, default=ANSWERS_NAMED, show_default=True, help="Name so many answers, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def impact(
    file: Path | None,
    storage: str | None,
    home: str | None,
    table: str,
    where: str | None,
    version: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show what depends on TABLE (`catalog.schema.table`, or `...@version`)."""
    parts = build_parts(chosen(file, storage, home))
    found = find_impact(parts.tables, parts.catalog, table, where=where, version=version, limit=limit)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        Console().print(as_tree(found))


def as_tree(found: Impact) -> Tree:
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


def _dependent(one: Dependent, *, by_rows: bool) -> Tree:
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


def _answers(answers: Answers) -> Tree:
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
