"""`mosaic endpoint compare`: the arms of an A/B test beside each other."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mosaic.cli.options import Moment, chosen, json_option, with_settings_by_name
from mosaic.cli.show import show, show_one

if TYPE_CHECKING:
    from mosaic.monitoring.compare import Comparison

_ARMS = (
    "name",
    "requests",
    "units",
    "error_rate",
    "latency_p50_milliseconds",
    "latency_p95_milliseconds",
    "first_token_p50_milliseconds",
    "first_token_p95_milliseconds",
    "input_tokens",
    "output_tokens",
    "cost_nano_dollars",
    "feedback",
    "ratings",
    "cached",
    "fell_back",
)


@click.command()
@with_settings_by_name
@json_option
@click.option(
    "--since", type=Moment(), help="Only requests from then on, such as 2026-01-31 or 12h (ago).  [default: 7d]"
)
@click.option(
    "--arms", default="", help="Only these served entities, as a,b; the first is what others are held against."
)
@click.argument("name")
def compare(
    settings: Path | None,
    storage: str | None,
    home: str | None,
    name: str,
    since: datetime | None,
    arms: str,
    as_json: bool,
) -> None:
    """Show the served entities of the endpoint called NAME beside each other, and which differences are no accident.

    Times, errors, tokens, cost and feedback, from the inference table. Where users keep their served entity (`sticky:
    user`) it is users who count, not requests.
    """
    from mosaic.data import Tables
    from mosaic.monitoring import compare as comparing
    from mosaic.platform.settings import open_catalog
    from mosaic.storage import Storage

    told = chosen(settings, storage, home)
    tables = Tables(Storage(told.storage, told.storage_options), catalog := open_catalog(told))
    names = [one.strip() for one in arms.split(",") if one.strip()]
    found = comparing.compare(tables, catalog, name, since=since, arms=names)
    if as_json:
        show_one(found, as_json)
    else:
        _show(found)


def _show(found: "Comparison") -> None:
    head = {"endpoint": found.endpoint, "since": found.since, "unit": found.unit}
    show_one({**head, "config_versions": ", ".join(map(str, found.config_versions))}, False)
    click.echo()
    # An arm a column: there are few arms, and many figures.
    figures = [{"figure": name, **{arm.name: _shown(getattr(arm, name)) for arm in found.arms}} for name in _ARMS[1:]]
    show(figures, ("figure", *(arm.name for arm in found.arms)), False, what="arms")
    click.echo()
    show(found.verdicts, ("metric", "text"), False, what="differences")
    for note in found.notes:
        click.echo(note, err=True)


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
