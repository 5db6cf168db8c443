"""What endpoints have kept for as long as they want to: rows of their own tables go, and texts of the platform's table.

The rows of the platform's own table stay, without texts: they say what was used. Files of older versions, which have
all of it, go with the vacuum that follows, a week later.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import date, timedelta
from typing import NamedTuple

from deltalake.exceptions import DeltaError

from mosaic.data import Tables
from mosaic.data.delta import commit_properties
from mosaic.data.vacuum import RETENTION_HOURS
from mosaic.errors import MosaicError, NotFound
from mosaic.monitoring.payloads import FOLDER
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.storage import Storage

logger = logging.getLogger(__name__)


class Retention(NamedTuple):
    """Of one endpoint."""

    endpoint: str
    table: str | None
    """Its own."""
    days: int


def purge_payloads(
    tables: Tables,
    storage: Storage,
    retentions: Iterable[Retention],
    *,
    today: date,
    vacuum_hours: int = RETENTION_HOURS,
) -> bool:
    """Take away what is of an earlier day than the retention says; `vacuum_hours` later the files of that. Whether all
    went: what fails for one endpoint is logged, and is the next call's; the others have theirs."""
    touched, failed = set[str](), False
    for one in retentions:
        before = today - timedelta(days=one.days)
        try:
            if one.table is not None:
                with suppress(NotFound):  # dropped, with all in it
                    tables.delete_where(one.table, _of(one.endpoint, before))
                    _delete_objects(storage, tables.open(one.table).record.location, one.endpoint, before)
                    touched.add(one.table)
            _delete_texts(tables, one.endpoint, before)
            _delete_objects(storage, tables.open(INFERENCE_TABLE).record.location, one.endpoint, before)
            touched.add(INFERENCE_TABLE)
        except (MosaicError, DeltaError) as error:
            failed = True
            logger.warning("what endpoint %s has kept since before %s did not go: %s", one.endpoint, before, error)
    for name in sorted(touched):
        try:
            # Also where nothing was taken away now: what was a while ago may be old enough.
            tables.vacuum(name, retention_hours=vacuum_hours, keep_needed=True)
        except MosaicError as error:
            failed = True
            logger.warning("old files of table %s did not go: %s", name, error)
    return not failed


def _delete_texts(tables: Tables, endpoint: str, before: date) -> None:
    delta = tables.delta(INFERENCE_TABLE)
    delta.update(
        updates=dict.fromkeys(("request", "response"), "CAST(NULL AS STRING)"),
        predicate=f"{_of(endpoint, before)} AND (request IS NOT NULL OR response IS NOT NULL)",
        commit_properties=commit_properties(principal="system"),
    )


def _of(endpoint: str, before: date) -> str:
    name = endpoint.replace("'", "''")
    return f"endpoint = '{name}' AND request_date < DATE '{before.isoformat()}'"


def _delete_objects(storage: Storage, location: str, endpoint: str, before: date) -> None:
    """After the rows that refer to them."""
    for folder in storage.list(f"{location}/{FOLDER}/{endpoint}"):
        if folder.rpartition("/")[2] < before.isoformat():
            storage.delete(folder)
