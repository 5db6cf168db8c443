"""`mosaic token`: make, list and revoke access tokens."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import click

from mosaic.catalog import Catalog
from mosaic.catalog.identity import ALL_APIS, SCOPES
from mosaic.cli.options import ADMIN, Duration, comment_option, json_option, listed, with_catalog
from mosaic.cli.show import as_plain, dumped, show
from mosaic.errors import BadRequest


@click.group()
def token() -> None:
    """Access tokens: shown once, stored as hashes."""


@token.command()
@with_catalog
@click.option("--service", is_flag=True, help="For a service, not a person.")
@click.option("--admin", is_flag=True, help="May change the platform itself.")
@click.option("--scope", "scopes", multiple=True, help=f"What it opens: {', '.join(SCOPES)}.  [default: {ALL_APIS}]")
@click.option("--expires-in", "lasts", type=Duration(), help="How long it holds, such as 30d.  [default: for ever]")
@comment_option
@json_option
@click.argument("principal")
def create(
    catalog: Catalog,
    principal: str,
    service: bool,
    admin: bool,
    scopes: Sequence[str],
    lasts: timedelta | None,
    comment: str,
    as_json: bool,
) -> None:
    """Make a token for PRINCIPAL and print it: its secret is shown this once. JSON has it as `secret`.

    A PRINCIPAL who is not there is made, and stderr says so.
    """
    try:
        expires_at = None if lasts is None else datetime.now(UTC) + lasts
    except OverflowError:
        raise BadRequest(f"--expires-in {lasts} ends after the year 9999; leave it out for ever") from None
    kind: Literal["user", "service"] = "service" if service else "user"
    is_new = principal not in (one.name for one in catalog.principals.list())
    record, secret = catalog.create_token(
        principal,
        kind=kind,
        is_admin=admin,
        comment=comment,
        expires_at=expires_at,
        scopes=scopes or (ALL_APIS,),
        by=ADMIN,
    )
    click.echo(dumped({**as_plain(record), "secret": secret}) if as_json else secret)
    if is_new:
        click.echo(f"{kind} {principal} is made", err=True)


@token.command("list")
@with_catalog
@listed
def list_tokens(catalog: Catalog, as_json: bool, limit: int | None) -> None:
    """Show tokens, without their secrets, oldest first."""
    columns = (
        *("id", "principal", "kind", "is_admin", "scopes", "comment"),
        *("expires_at", "revoked_at", "last_used_at"),
    )
    show(catalog.list_tokens(), columns, as_json, what="tokens", limit=limit)


@token.command()
@with_catalog
@click.argument("token_id")
def revoke(catalog: Catalog, token_id: str) -> None:
    """Revoke TOKEN_ID; refused everywhere within a second."""
    catalog.revoke_token(token_id, by=ADMIN)
    click.echo(f"{token_id} is revoked")
