"""`mosaic usage`: requests, tokens and money, from the inference table."""

import csv
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mosaic.cli.options import ADMIN, Moment, as_option, json_option, limit_option, with_access
from mosaic.cli.show import show
from mosaic.protocol import Principal

if TYPE_CHECKING:
    from mosaic.data.access import Access
    from mosaic.monitoring.usage import Usage

_COUNTED = ("requests", "failed", "input_tokens", "output_tokens", "cost", "unpriced", "gpu_seconds")


@click.command()
@with_access
@click.option(
    "--by", default="user", show_default=True, help="Some of user, model, day, endpoint, tag, with commas between."
)
@click.option("--from", "since", type=Moment(), help="From this time on, such as 2026-01-31 or 30d (ago).")
@click.option("--to", "until", type=Moment(), help="Until this time.  [default: now]")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with a line of names; money in nano-dollars.")
@json_option
@limit_option
@as_option
def usage(
    access: "Access",
    by: str,
    since: datetime | None,
    until: datetime | None,
    as_csv: bool,
    as_json: bool,
    limit: int | None,
    principal: Principal,
) -> None:
    """Show requests, tokens and money, summed by what --by names; up to some seconds late.

    `unpriced` counts answers of models without a price, which are in no sum of money.
    """
    if as_json and as_csv:
        raise click.UsageError("choose --json or --csv")
    from mosaic.data import Tables
    from mosaic.monitoring.usage import usage as used

    keys = [key.strip() for key in by.split(",") if key.strip()]
    tables = Tables(access.storage, access.catalog)
    whom = None if principal is ADMIN else principal
    found = used(tables, access.catalog, by=keys, since=since, until=until, principal=whom)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        columns = [*keys, *("cost_nano_dollars" if name == "cost" else name for name in _COUNTED)]
        writer.writerows([columns, *([getattr(one, name) for name in columns] for one in found[:limit])])
        return
    show(
        found if as_json else [_in_dollars(one) for one in found],
        (*keys, *_COUNTED),
        as_json,
        what="usage",
        limit=limit,
    )


def _in_dollars(one: "Usage") -> dict[str, Any]:
    from mosaic.catalog.money import dollars

    return {**one.model_dump(), "cost": dollars(one.cost_nano_dollars)}
