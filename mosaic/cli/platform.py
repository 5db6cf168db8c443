"""`mosaic up`, `mosaic status`, `mosaic down`."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mosaic.cli.options import chosen as chosen
from mosaic.cli.options import with_settings as with_settings
from mosaic.platform import PlatformSettings
from mosaic.platform import down as stop_platform
from mosaic.platform import up as start_platform
from mosaic.platform.lifecycle import Started, join

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


def start(settings: PlatformSettings) -> Started:
    """`up`, with a line for each step on a terminal."""
    console = Console(stderr=True)
    with console.status("starting") as spinner:
        return start_platform(settings, lambda line: spinner.update(f"starting: {line}"))


def print_started(started: Started) -> None:
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
    parts = join(chosen(file, storage, home).home_folder).status()
    if as_json:
        click.echo(json.dumps([part.model_dump() for part in parts], indent=2))
    else:
        table = Table("part", "state", "", box=None)
        for part in parts:
            table.add_row(part.part, f"[{COLOURS[part.state]}]{part.state}[/]", part.detail)
        Console().print(table)
    if any(part.state != "healthy" for part in parts):
        raise SystemExit(1)


@click.command()
@with_settings
def down(file: Path | None, storage: str | None, home: str | None) -> None:
    """Stop the platform; requests on their way end, nothing is lost, no process stays."""
    settings = chosen(file, storage, home)
    console = Console(stderr=True)
    with console.status("stopping") as spinner:
        ran = stop_platform(settings.home_folder, lambda line: spinner.update(f"stopping: {line}"))
    click.echo("mosaic is down" if ran else f"nothing ran from {settings.home_folder}")
