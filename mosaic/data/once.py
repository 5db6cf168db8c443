"""Rows into a table exactly once, whatever is killed when: for work that is cut into numbered pieces.

A commit carries, beside its rows, how far the work has come (Delta's transaction identifier: application = the work,
version = the piece's number). Rows and number become visible together, so whoever goes on after a kill knows what is
done; and of two that do the same piece at once, Delta lets one commit.
"""

import pyarrow as pa
from deltalake import Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from mosaic.data.access import Access
from mosaic.data.delta import arrow_schema, fit
from mosaic.errors import BadRequest, Conflict

_ATTEMPTS = 20


def position(access: Access, name: str, application: str) -> int:
    """The number of the last piece of a work that the table has; 0 before the first. Needs SELECT."""
    return access.peek(name).delta.transaction_version(application) or 0


def append_once(access: Access, name: str, rows: pa.Table, application: str, number: int, *, after: int) -> int | None:
    """Commit a piece's rows; the version that has them, or None if the table had the piece before.

    `after` is the number that the table must be at, or else pieces between would be taken for done: Conflict. Other
    writers' commits do not disturb.
    """
    if not after < number:
        raise BadRequest(f"piece {number} of {application} cannot come after piece {after}")
    for _ in range(_ATTEMPTS):
        writing = access.to_write(name)
        # From the same state of the table that the commit builds on.
        done = writing.delta.transaction_version(application) or 0
        if done >= number:
            return None
        if done != after:
            raise Conflict(
                f"table {name!r} is at piece {done} of {application}, not at {after}, which {number} follows"
            )
        properties = writing.properties(transactions=[Transaction(application, number)])
        fitting = fit(rows, arrow_schema(writing.delta), writing.record.name)
        try:
            write_deltalake(writing.delta, fitting, mode="append", commit_properties=properties)
        except CommitFailedError:
            continue
        return writing.committed(writing.delta.version(), "append", rows.num_rows)
    raise Conflict(f"{name}: {_ATTEMPTS} commits in a row lost against other writers; piece {number} stays for later")
