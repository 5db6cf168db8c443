"""`mosaic quota`: what is left of an endpoint's rate limits."""

from typing import TYPE_CHECKING

import click

from mosaic.cli.options import ADMIN, chosen, listed, with_settings
from mosaic.cli.show import show

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def quota() -> None:
    """What is left of the rate limits of an endpoint."""


@quota.command("show")
@with_settings
@listed
@click.argument("endpoint")
def show_(
    file: "Path | None", storage: str | None, home: str | None, endpoint: str, as_json: bool, limit: int | None
) -> None:
    """Show the rate limits of ENDPOINT and what is left of them now; of those that each user has, who asked lately."""
    from mosaic.platform.lifecycle import join

    found = join(chosen(file, storage, home).home_folder).acting(ADMIN).money.limits(endpoint)
    columns = ("key", "whom", "unit", "limit", "remaining", "reset_seconds")
    show(found, columns, as_json, what="rate limits", limit=limit)
