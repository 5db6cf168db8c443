"""`mosaic vacuum`: files that nobody needs any more, of one table or of everything that was dropped."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from mosaic.cli.options import ADMIN, json_option, with_access
from mosaic.errors import BadRequest

if TYPE_CHECKING:
    from mosaic.data.access import Access


@click.command()
@with_access
@json_option
@click.argument("table", required=False)
@click.option("--dropped", is_flag=True, help="The data of tables and volumes that were dropped, instead of a TABLE.")
@click.option("--retention-hours", type=click.IntRange(min=0), default=168, show_default=True, help="What is kept.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--keep-needed", is_flag=True, help="Keep what live models and indexes need.")
@click.option("--force", is_flag=True, help="Remove also what live models and indexes need.")
def vacuum(
    access: "Access",
    table: str | None,
    dropped: bool,
    retention_hours: int,
    dry_run: bool,
    keep_needed: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Remove the files of TABLE that no version of the last hours needs.

    Refused, with the reason, where a live model or index depends on such a version.
    """
    if dropped == (table is not None):
        raise BadRequest("name a TABLE, or --dropped for what was dropped")
    if table is None:
        if keep_needed or force:
            raise BadRequest("--keep-needed and --force are about a TABLE, not --dropped")
        _purge(access, retention_hours, dry_run, as_json)
    else:
        _vacuum(access, table, retention_hours, dry_run, keep_needed, force, as_json)


def _vacuum(
    access: "Access", table: str, retention_hours: int, dry_run: bool, keep_needed: bool, force: bool, as_json: bool
) -> None:
    from mosaic.data import vacuum as cleaning

    acting = access.acting(ADMIN, None)
    done = cleaning.vacuum(
        acting, table, retention_hours=retention_hours, dry_run=dry_run, force=force, keep_needed=keep_needed
    )
    if as_json:
        click.echo(done.model_dump_json(indent=2))
        return
    for path in done.files:
        click.echo(path)
    click.echo(f"{len(done.files)} file(s) of {done.table} {'would go' if dry_run else 'removed'}")
    for one in done.needed:
        click.echo(f"{done.table}@{one.version} needs {len(one.files)} of them: {one.by}")


def _purge(access: "Access", retention_hours: int, dry_run: bool, as_json: bool) -> None:
    from mosaic.data.retention import purge

    kept_for = timedelta(hours=retention_hours)
    done = purge(access.storage, access.catalog, now=datetime.now(UTC), older_than=kept_for, dry_run=dry_run, by=ADMIN)
    if as_json:
        click.echo(done.model_dump_json(indent=2))
        return
    for gone in done.removed:
        click.echo(f"{gone.kind} {gone.name}: {gone.location}")
    click.echo(f"{len(done.removed)} dropped table(s) and volume(s) {'would be purged' if dry_run else 'purged'}")
    for kept in done.kept:
        click.echo(f"{kept.kind} {kept.name} stays: {kept.reason}")
