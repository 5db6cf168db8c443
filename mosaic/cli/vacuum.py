"""`mosaic vacuum`: files that nobody needs any more, of one table or of everything that was dropped."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from mosaic.cli.grants import ADMIN
from mosaic.cli.platform import chosen, with_settings
from mosaic.data.retention import purge
from mosaic.data.vacuum import RETENTION_HOURS
from mosaic.errors import BadRequest
from mosaic.platform.parts import Parts, build_parts


@click.command()
@with_settings
@click.argument("table", required=False)
@click.option("--dropped", is_flag=True, help="The data of tables and volumes that were dropped, instead of a TABLE.")
@click.option(
    "--retention-hours", type=click.IntRange(min=0), default=RETENTION_HOURS, show_default=True, help="What is kept."
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--keep-needed", is_flag=True, help="Keep what live models and indexes need.")
@click.option("--force", is_flag=True, help="Remove also what live models and indexes need.")
def vacuum(
    file: Path | None,
    storage: str | None,
    home: str | None,
    table: str | None,
    dropped: bool,
    retention_hours: int,
    dry_run: bool,
    keep_needed: bool,
    force: bool,
) -> None:
    """Remove the files of TABLE that no version of the last hours needs.

    Refused, with the reason, where a live model or index depends on such a version.
    """
    if dropped == (table is not None):
        raise BadRequest("name a TABLE, or --dropped for what was dropped")
    parts = build_parts(chosen(file, storage, home))
    if table is None:
        if keep_needed or force:
            raise BadRequest("--keep-needed and --force are about a TABLE, not --dropped")
        _purge(parts, retention_hours, dry_run)
        return
    tables = parts.tables.acting(ADMIN)
    done = tables.vacuum(table, retention_hours=retention_hours, dry_run=dry_run, force=force, keep_needed=keep_needed)
    for path in done.files:
        click.echo(path)
    click.echo(f"{len(done.files)} file(s) of {done.table} {'would go' if dry_run else 'removed'}")
    for one in done.needed:
        click.echo(f"{done.table}@{one.version} needs {len(one.files)} of them: {one.by}")


def _purge(parts: Parts, retention_hours: int, dry_run: bool) -> None:
    kept_for = timedelta(hours=retention_hours)
    done = purge(parts.storage, parts.catalog, now=datetime.now(UTC), older_than=kept_for, dry_run=dry_run, by=ADMIN)
    for gone in done.removed:
        click.echo(f"{gone.kind} {gone.name}: {gone.location}")
    click.echo(f"{len(done.removed)} dropped table(s) and volume(s) {'would be purged' if dry_run else 'purged'}")
    for kept in done.kept:
        click.echo(f"{kept.kind} {kept.name} stays: {kept.reason}")
