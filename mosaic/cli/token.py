"""`mosaic token`: make, list and revoke access tokens."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mosaic.cli.platform import chosen, with_settings
from mosaic.platform.parts import build_parts


@click.group()
def token() -> None:
    """Access tokens: shown once, stored as hashes."""


@token.command()
@with_settings
@click.argument("principal")
@click.option("--service", is_flag=True, help="For a service, not a person.")
@click.option("--admin", is_flag=True, help="May change the platform itself.")
@click.option("--comment", default="", help="What it is for.")
def create(
    file: Path | None, storage: str | None, home: str | None, principal: str, service: bool, admin: bool, comment: str
) -> None:
    """Make a token for PRINCIPAL and print it."""
    catalog = build_parts(chosen(file, storage, home)).catalog
    kind = "service" if service else "user"
    _, secret = catalog.create_token(principal, kind=kind, is_admin=admin, comment=comment)  # type: ignore[arg-type]
    click.echo(secret)


@token.command("list")
@with_settings
def list_tokens(file: Path | None, storage: str | None, home: str | None) -> None:
    """Show tokens, without their secrets."""
    table = Table("id", "principal", "kind", "admin", "comment", "revoked", "last used", box=None)
    for record in build_parts(chosen(file, storage, home)).catalog.list_tokens():
        table.add_row(
            record.id,
            record.principal,
            record.kind,
            "yes" if record.is_admin else "",
            record.comment,
            str(record.revoked_at or ""),
            str(record.last_used_at or ""),
        )
    Console().print(table)


@token.command()
@with_settings
@click.argument("token_id")
def revoke(file: Path | None, storage: str | None, home: str | None, token_id: str) -> None:
    """Revoke TOKEN_ID; refused everywhere within a second."""
    build_parts(chosen(file, storage, home)).catalog.revoke_token(token_id)
    click.echo(f"{token_id} is revoked")
