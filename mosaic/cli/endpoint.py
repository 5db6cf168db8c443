"""`mosaic endpoint`: what models answer under which names."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from mosaic.catalog.records import Endpoint
from mosaic.cli.compare import compare
from mosaic.cli.options import ADMIN, chosen, json_option, listed, together, with_settings_by_name
from mosaic.cli.show import as_plain, clean, dumped, show, show_one, tell
from mosaic.errors import BadRequest

if TYPE_CHECKING:
    from mosaic.serving.endpoint import EndpointSettings
    from mosaic.serving.metrics import EntityMetrics
    from mosaic.serving.service import Serving

_change = together(
    click.option(
        "-f",
        "--file",
        "spec",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        required=True,
        help="What is to be served: endpoint.yaml (docs/serving.md).",
    ),
    click.option("--wait/--no-wait", default=True, help="Return when it answers, or at once.  [default: --wait]"),
    json_option,
)


@click.group()
def endpoint() -> None:
    """Serving endpoints: what models answer under which names."""


endpoint.add_command(compare)


def with_serving(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which platform, which must run; the command gets its `Serving` first."""

    @functools.wraps(command)
    def opened(*, settings: Path | None, storage: str | None, home: str | None, **given: Any) -> None:
        from mosaic.platform.lifecycle import join

        command(join(chosen(settings, storage, home).home_folder).acting(ADMIN).serving, **given)

    return with_settings_by_name(opened)


@endpoint.command("list")
@with_serving
@listed
def list_(serving: "Serving", as_json: bool, limit: int | None) -> None:
    """Show the endpoints, by name, and how they are."""
    states = serving.states()
    found = [{**one.model_dump(), "state": serving.state(one, states).model_dump()} for one in serving.list()]
    columns = ("name", "owner", "config_version", "state.ready", "state.config_update", "updated_at")
    show(found, columns, as_json, what="endpoints", limit=limit)


@endpoint.command()
@with_serving
@_change
def create(serving: "Serving", spec: Path, wait: bool, as_json: bool) -> None:
    """Make an endpoint and start what it serves."""
    finished(serving, serving.create(_read(spec)), wait, as_json)


@endpoint.command()
@with_serving
@_change
def update(serving: "Serving", spec: Path, wait: bool, as_json: bool) -> None:
    """Give an endpoint another configuration; the one before answers until this one does."""
    finished(serving, serving.update(_read(spec)), wait, as_json)


@endpoint.command()
@with_serving
@json_option
@click.argument("name")
def get(serving: "Serving", name: str, as_json: bool) -> None:
    """Show the endpoint called NAME, and how it is."""
    found = serving.get(name)
    show_one(found, as_json, state=serving.state(found))


@endpoint.command()
@with_serving
@listed
@click.argument("name")
def configs(serving: "Serving", name: str, as_json: bool, limit: int | None) -> None:
    """Show every configuration that the endpoint called NAME had or was to have, oldest first."""
    columns = ("version", "state", "reason", "created_by", "created_at", "decided_at")
    show(serving.configs(name), columns, as_json, what="configurations", limit=limit)


@endpoint.command()
@with_serving
@json_option
@click.argument("name")
def describe(serving: "Serving", name: str, as_json: bool) -> None:
    """Show the endpoint called NAME with its engines: how they are, what they run with, and where."""
    found = serving.describe(name)
    if as_json:
        show_one(found, as_json)
        return
    show_one({field: value for field, value in found if field != "entities"}, as_json)
    for entity in found.entities:
        click.echo()
        shown = {field: value for field, value in entity if field not in ("replicas", "settings")}
        settings = {} if entity.settings is None else entity.settings.model_dump(exclude_defaults=True, mode="json")
        show_one({**shown, "settings": settings or "the defaults"}, as_json)
        show(entity.replicas, ("replica_id", "state", "node", "pid", "started_at"), as_json, what="replicas")


@endpoint.command()
@with_serving
@json_option
@click.argument("name")
def metrics(serving: "Serving", name: str, as_json: bool) -> None:
    """Show what is counted of the endpoint called NAME: requests, times in ms, tokens, queue, KV cache.

    By served entity, since the gateways that run were started, and up to 10 seconds late. `ongoing`, `waiting` and `kv
    cache` are of the engine, which several entities may share.
    """
    found = serving.metrics(name)
    rows = [*found] if as_json else [_in_milliseconds(one) for one in found]
    show(rows, _METRICS, as_json, what="served entities")


@endpoint.command()
@with_serving
@json_option
@click.option("--entity", help="Only of this served entity's engine.")
@click.option("--lines", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The last so many.")
@click.argument("name")
def logs(serving: "Serving", name: str, entity: str | None, lines: int, as_json: bool) -> None:
    """Show what the replicas of the endpoint called NAME logged and printed last."""
    found = serving.logs(name, entity, lines=lines)
    if as_json:
        click.echo(dumped([as_plain(one) for one in found]))
        return
    for one in found:
        click.echo(f"== {one.entity}, replica {one.replica_id} on {one.node or 'no node yet'}")
        for line in one.lines:
            click.echo(clean(line))
    if not found:
        click.echo("no replicas", err=True)


@endpoint.command()
@with_serving
@click.argument("name")
def delete(serving: "Serving", name: str) -> None:
    """Delete the endpoint called NAME; requests on their way are answered."""
    serving.delete(name)
    click.echo(f"deleted endpoint {name}")


_METRICS = (
    "entity",
    "requests",
    "failed",
    "first_token_p50",
    "first_token_p95",
    "output_token",
    "input_tokens",
    "output_tokens",
    "ongoing",
    "waiting",
    "kv_cache",
    "replicas",
)


def _in_milliseconds(one: "EntityMetrics") -> dict[str, Any]:
    def ms(seconds: float | None) -> str | None:
        return None if seconds is None else f"{seconds * 1e3:.1f}"

    return {
        **one.model_dump(),
        "first_token_p50": ms(one.first_token_p50_seconds),
        "first_token_p95": ms(one.first_token_p95_seconds),
        "output_token": ms(one.output_token_seconds),
        "kv_cache": None if one.kv_cache_used is None else f"{one.kv_cache_used:.1%}",
    }


def _read(spec: Path) -> "EndpointSettings":
    from mosaic.serving.endpoint import EndpointSettings

    try:
        given = yaml.safe_load(spec.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{spec} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise BadRequest(f"{spec} must hold fields such as name and served_entities, not {type(given).__name__}")
    return EndpointSettings.parse(given, source=str(spec))


def finished(serving: "Serving", made: Endpoint, wait: bool, as_json: bool) -> None:
    """Tell how far a change of an endpoint is, at once or when it is live."""
    if wait:
        made = serving.wait(made.name)
    config = made.pending
    told = f"config {config.version} is being rolled out" if config else f"config {made.config_version} is live"
    tell(f"endpoint {made.served_name}: {told}", made, as_json)
