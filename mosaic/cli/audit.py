"""`mosaic audit`: who changed what, and who was refused what."""

import collections
import functools
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from mosaic.catalog import AuditEvent, Catalog
from mosaic.cli.options import Command, Moment, json_option, together, with_catalog
from mosaic.cli.show import cell, show

Matches = Callable[[AuditEvent], bool]

COLUMNS = ("event_time", "principal", "action", "on", "status", "error", "user_agent")
_PAGE = 10_000
_SECONDS_BETWEEN_LOOKS = 0.5

chosen_by = together(
    click.option("--since", type=Moment(), help="Only from this time on, such as 2026-01-31T10:32, 10:32 or 2h (ago)."),
    click.option("--action", help="Only this action, such as deleteTable."),
    click.option("--principal", help="Only what this user or service did."),
    click.option("--denied", is_flag=True, help="Only what was refused."),
)
"""Which events."""


@click.group()
def audit() -> None:
    """The audit trail: who changed what, and who was refused what."""


def with_events(command: Command) -> Command:
    """The options that say which events; the command gets the test of one as `matches`."""

    def chosen(
        catalog: Catalog,
        since: datetime | None,
        action: str | None,
        principal: str | None,
        denied: bool,
        **given: Any,
    ) -> None:
        def matches(event: AuditEvent) -> bool:
            return (
                (since is None or event.event_time >= since)
                and action in (None, event.action_name)
                and principal in (None, event.user_identity.email)
                and (not denied or event.response.status_code == 403)
            )

        command(catalog, matches=matches, **given)

    return chosen_by(functools.update_wrapper(chosen, command))


@audit.command("list")
@with_catalog
@with_events
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="The newest so many.  [default: 200; with --json all]"
)
@json_option
def list_events(catalog: Catalog, matches: Matches, limit: int | None, as_json: bool) -> None:
    """Show the events that match, oldest first."""
    _show_newest(catalog, matches, None if as_json and limit is None else limit or 200, as_json)


@audit.command()
@with_catalog
@with_events
@click.option(
    "-n", "--limit", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many."
)
@click.option("--follow", is_flag=True, help="Go on with what comes, until interrupted; JSON is then one event a line.")
@json_option
def tail(catalog: Catalog, matches: Matches, limit: int, follow: bool, as_json: bool) -> None:
    """Show the newest events that match, oldest first."""
    if not follow:
        _show_newest(catalog, matches, limit, as_json, tells_of_more=False)
        return
    newest = catalog.audit.newest(_PAGE)
    shown = [event for event in newest if matches(event)][-limit:]
    after = newest[-1].sequence if newest else 0
    try:
        while True:
            for event in shown:
                click.echo(event.model_dump_json() if as_json else _line(event))
            time.sleep(0 if len(shown) == _PAGE else _SECONDS_BETWEEN_LOOKS)
            fresh = catalog.audit.list(after=after, limit=_PAGE)
            after = fresh[-1].sequence if fresh else after
            shown = [event for event in fresh if matches(event)]
    except KeyboardInterrupt:
        pass


def _show_newest(
    catalog: Catalog, matches: Matches, limit: int | None, as_json: bool, *, tells_of_more: bool = True
) -> None:
    kept: collections.deque[AuditEvent] = collections.deque(maxlen=limit)
    count = after = 0
    while page := catalog.audit.list(after=after, limit=_PAGE):
        after = page[-1].sequence
        found = [event for event in page if matches(event)]
        count += len(found)
        kept.extend(found)
    events: Sequence[Any] = list(kept) if as_json else [_row(event) for event in kept]
    show(events, COLUMNS, as_json, what="events", limit=max(len(events), 1))
    if tells_of_more and count > len(events):
        click.echo(f"{count - len(events):,} older events are not shown; --limit {count} shows all", err=True)


def _row(event: AuditEvent) -> dict[str, Any]:
    params = dict(event.request_params)
    named = [params.pop(key) for key in ("securable_type", "securable_full_name") if key in params]
    return {
        "event_time": event.event_time,
        "principal": event.user_identity.email,
        "action": event.action_name,
        "on": " ".join([*named, *(f"{key}={value}" for key, value in params.items())]),
        "status": event.response.status_code,
        "error": event.response.error_message,
        "user_agent": event.user_agent,
    }


def _line(event: AuditEvent) -> str:
    return "  ".join(shown for value in _row(event).values() if (shown := cell(value)))
