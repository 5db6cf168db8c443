"""`mosaic price`: what models cost."""

from datetime import datetime
from typing import Any

import click

from mosaic.catalog import Catalog
from mosaic.catalog.money import dollars, parse_dollars
from mosaic.catalog.prices import Price
from mosaic.cli.options import ADMIN, Moment, json_option, listed, with_catalog
from mosaic.cli.show import show, tell


@click.group()
def price() -> None:
    """Prices of models, in versions that never change; each is valid from a time on."""


@price.command("set")
@with_catalog
@click.option("--input", "read", metavar="DOLLARS", default="0", help="A million tokens that are read, such as 0.15.")
@click.option(
    "--cached-input", "again", metavar="DOLLARS", help="A million that come from a prefix cache.  [default: --input]"
)
@click.option("--output", "written", metavar="DOLLARS", default="0", help="A million tokens that are written.")
@click.option("--gpu-second", "second", metavar="DOLLARS", default="0", help="A second of one GPU, for models of ours.")
@click.option("--valid-from", type=Moment(), help="From when on, in UTC unless it names a zone.  [default: now]")
@json_option
@click.argument("model")
def set_(
    catalog: Catalog,
    model: str,
    read: str,
    again: str | None,
    written: str,
    second: str,
    valid_from: datetime | None,
    as_json: bool,
) -> None:
    """Say what MODEL costs from now on: its name, provider/name, or a pattern such as `openai/gpt-5*`.

    The name itself goes before patterns, and a longer pattern before a shorter one.
    """
    made = catalog.prices.set(
        model,
        input_nano_dollars_per_million=parse_dollars(read, param="--input"),
        cached_input_nano_dollars_per_million=None if again is None else parse_dollars(again, param="--cached-input"),
        output_nano_dollars_per_million=parse_dollars(written, param="--output"),
        gpu_second_nano_dollars=parse_dollars(second, param="--gpu-second"),
        valid_from=valid_from,
        by=ADMIN,
    )
    tell(f"price {made.version} of {made.model} is valid from {made.valid_from:%Y-%m-%dT%H:%M:%SZ}", made, as_json)


@price.command("list")
@with_catalog
@listed
@click.option("--model", help="Only of this model or pattern, as it was set.")
def list_(catalog: Catalog, model: str | None, as_json: bool, limit: int | None) -> None:
    """Show every version of every price, oldest first; dollars for a million tokens, and for a second of a GPU."""
    found = catalog.prices.list(model)
    columns = ("version", "model", "input", "cached_input", "output", "gpu_second", "valid_from", "created_by")
    show(found if as_json else [_shown(one) for one in found], columns, as_json, what="prices", limit=limit)


def _shown(one: Price) -> dict[str, Any]:
    return {
        **one.model_dump(),
        "input": dollars(one.input_nano_dollars_per_million),
        "cached_input": dollars(one.cached_input_nano_dollars_per_million),
        "output": dollars(one.output_nano_dollars_per_million),
        "gpu_second": dollars(one.gpu_second_nano_dollars),
    }
