"""What commands take: which platform, in whose name, and how to answer. Each option is said here, once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mosaic.protocol import Principal

if TYPE_CHECKING:
    from mosaic.catalog import Catalog
    from mosaic.platform.settings import PlatformSettings

Command = Callable[..., Any]
"""What click makes a command of."""

ADMIN = Principal(name="admin", is_admin=True, user_agent="mosaic command")
"""Whoever reaches the catalog's database from a terminal is its administrator."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

settings_options = [
    click.option(
        "-f", "--file", type=click.Path(dir_okay=False, path_type=Path), help="YAML settings (cluster/local.yaml)."
    ),
    click.option("--storage", help="Root of all data: a folder, s3://, gs:// or abfss://.  [default: ~/.mosaic]"),
    click.option("--home", help="Folder on this machine for logs, caches and the SQLite catalog."),
]


def together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order."""

    def decorated(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


with_settings = together(*settings_options)
"""The options that say which platform."""
with_settings_by_name = together(
    # Elsewhere -f names the platform's settings; of endpoints it is the one that people have in a file.
    click.option("--settings", type=click.Path(dir_okay=False, path_type=Path), help="YAML settings of the platform."),
    *settings_options[1:],
)


def chosen(file: Path | None, storage: str | None, home: str | None, **more: Any) -> "PlatformSettings":
    """The settings that the options mean."""
    from mosaic.platform.settings import load_settings  # `--help` does not wait for it

    given = {key: value for key, value in {"storage": storage, "home": home, **more}.items() if value is not None}
    return load_settings(file, **given)


def with_access(command: Command) -> Command:
    """The options that say which platform; the command gets first what opens its tables, which asks for no grants."""

    @functools.wraps(command)
    def opened(*, file: Path | None, storage: str | None, home: str | None, **given: Any) -> None:
        from mosaic.data.access import Access
        from mosaic.platform.settings import open_catalog
        from mosaic.storage import Storage

        settings = chosen(file, storage, home)
        catalog = open_catalog(settings)
        _check_owner(catalog, given)
        command(Access(Storage(settings.storage, settings.storage_options), catalog), **given)

    return with_settings(opened)


def with_catalog(command: Command) -> Command:
    """The options that say which platform; the command gets its `Catalog` first."""

    @functools.wraps(command)
    def opened(*, file: Path | None, storage: str | None, home: str | None, **given: Any) -> None:
        from mosaic.platform.settings import open_catalog

        catalog = open_catalog(chosen(file, storage, home))
        _check_owner(catalog, given)
        command(catalog, **given)

    return with_settings(opened)


def _check_owner(catalog: "Catalog", given: Mapping[str, Any]) -> None:
    """A slip of the keyboard would give things to nobody, and later to whoever gets that name; raises NotFound."""
    from mosaic.catalog.names import check_principal

    owner = given.get("owner")
    if owner is not None and owner != ADMIN.name:
        check_principal(owner)
        catalog.principals.get(owner)


class Moment(click.ParamType[datetime]):
    """A moment in UTC unless it says its zone, or how long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        now = datetime.now(UTC)
        ago = _duration(value)
        try:
            if ago is not None:
                return now - ago
            clock = f"{now:%Y-%m-%d}T{value}" if ":" in value and "-" not in value[:5] else value
            moment = datetime.fromisoformat(clock)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; say 2026-01-31T10:32, 10:32 (today) or 2h (ago), in UTC unless a zone is named",
                param,
                ctx,
            )


class Duration(click.ParamType[timedelta]):
    """How long: `30d`, `12h`, `5m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        lasts = value if isinstance(value, timedelta) else _duration(value)
        if lasts is None or not lasts:
            self.fail(f"{value!r} is no duration; say 30d, 12h, 5m, 90s or 2w", param, ctx)
        return lasts


class Pair(click.ParamType[tuple[str, str]]):
    """`KEY=VALUE`."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, content = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} must be KEY=VALUE", param, ctx)
        return key, content


def _duration(text: str) -> timedelta | None:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and unit in _UNITS and len(number) < 7):
        return None
    return timedelta(**{_UNITS[unit]: int(number)})


def pairs(given: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """As a mapping; a key that comes twice is a bad argument."""
    found: dict[str, str] = {}
    for key, value in given:
        if key in found:
            raise click.UsageError(f"{option} {key!r} is given twice")
        found[key] = value
    return found


def _as_whom(context: click.Context, param: click.Parameter, value: str | None) -> Principal:
    return ADMIN if value is None else Principal(name=value, user_agent=ADMIN.user_agent)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document with the records' fields.")
limit_option = click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="Show at most so many.  [default: 200; with --json all]"
)
as_option = click.option(
    "--as", "principal", metavar="PRINCIPAL", callback=_as_whom, help="Only what this user, service or group may see."
)
etag_option = click.option("--etag", help="Only if its etag is still this one.")
comment_option = click.option("--comment", default="", help="What it is for.")
property_option = click.option(
    "--property", "properties", type=Pair(), multiple=True, help="A property; may be given several times."
)
location_option = click.option(
    "--location",
    help="A folder that is there: /path, s3://, gs://, abfss://.  [default: a new one of the platform's]",
)
owner_option = click.option("--owner", default=ADMIN.name, show_default=True, help="A user, service or group.")

listed = together(json_option, limit_option)
described = together(comment_option, property_option, owner_option, json_option)
