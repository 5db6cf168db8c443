"""`mosaic up`, `mosaic status`, `mosaic down`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from mosaic.cli.options import chosen, with_settings
from mosaic.cli.show import clean, print_table
from mosaic.runtime.home import check_nothing_runs

if TYPE_CHECKING:
    from mosaic.platform.lifecycle import Started
    from mosaic.platform.settings import PlatformSettings

COLOURS = {"healthy": "green", "starting": "yellow", "failed": "red", "stopped": "dim"}


@click.command()
@with_settings
@click.option("--address", help="Join this Ray cluster (`auto` or host:port) instead of starting one.")
@click.option("--port", "http_port", type=int, help="Port of the gateway.  [default: 8000]")
def up(file: Path | None, storage: str | None, home: str | None, address: str | None, http_port: int | None) -> None:
    """Start the platform."""
    settings = chosen(file, storage, home, http_port=http_port)
    if address is not None:
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    print_started(start(settings))


def start(settings: "PlatformSettings") -> "Started":
    """`up`, with a line for each step on a terminal."""
    check_nothing_runs(settings.home_folder)
    from mosaic.platform.lifecycle import up as start_platform  # Ray takes seconds

    console = Console(stderr=True)
    with console.status("starting") as spinner:
        return start_platform(settings, lambda line: spinner.update(f"starting: {line}"))


def print_started(started: "Started") -> None:
    """Addresses, and the first token."""
    platform = started.platform
    click.echo(f"mosaic is up after {started.seconds:.0f} s")
    click.echo(f"  gateway    {platform.base_url}/v1")
    click.echo(f"  control    {platform.base_url}/api")
    click.echo(f"  dashboard  {platform.cluster.dashboard or 'that of the cluster at ' + platform.cluster.address}")
    click.echo(f"  mlflow     {platform.mlflow_uri} (a token in MLFLOW_TRACKING_TOKEN)")
    click.echo(f"  storage    {platform.storage.root}")
    if platform.cluster.dashboard:
        click.echo(
            f"  jobs       RAY_AUTH_MODE=token ray job submit --address {platform.cluster.dashboard} -- python JOB.py"
        )
    if started.first_token:
        click.echo(f"  token      {started.first_token}")
        click.echo("The token is the admin's and is shown this once; `mosaic token create` makes others.")


@click.command()
@with_settings
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(file: Path | None, storage: str | None, home: str | None, as_json: bool) -> None:
    """Show each part: healthy, starting, or failed and why. Exits 1 unless all are healthy."""
    from mosaic.platform.lifecycle import join

    parts = join(chosen(file, storage, home).home_folder).status()
    if as_json:
        click.echo(json.dumps([part.model_dump() for part in parts], indent=2))
    else:
        rows = [(part.part, part.state, clean(part.detail)) for part in parts]
        print_table(("part", "state", ""), rows, colours=COLOURS)
    if any(part.state != "healthy" for part in parts):
        raise SystemExit(1)


@click.command()
@with_settings
def down(file: Path | None, storage: str | None, home: str | None) -> None:
    """Stop the platform; requests on their way end, nothing is lost, no process stays."""
    from mosaic.platform.lifecycle import down as stop_platform

    settings = chosen(file, storage, home)
    console = Console(stderr=True)
    with console.status("stopping") as spinner:
        ran = stop_platform(settings.home_folder, lambda line: spinner.update(f"stopping: {line}"))
    click.echo("mosaic is down" if ran else f"nothing ran from {settings.home_folder}")
