"""Statements that run beside their request: each with an id, a state, its result for a while, and a way to stop it.

They live in the process that took them. A result is kept for `KEEP_SECONDS` or until newer ones need its place; a
process that ends takes its statements along, as it does the requests that wait.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from mosaic.data.sql import Sql, SqlResult
from mosaic.errors import MosaicError, NotFound, RateLimited
from mosaic.ids import new_id
from mosaic.protocol import Principal

KEEP_SECONDS = 3600
KEEP_RESULTS_BYTES = 256 * 1024 * 1024
MAX_OPEN = 64
"""Statements of one principal that have not ended."""

logger = logging.getLogger(__name__)

State = Literal["RUNNING", "SUCCEEDED", "FAILED", "CANCELED"]


@dataclass
class Running:
    """One statement, from its request to the end of its result."""

    statement_id: str
    principal: Principal
    state: State = "RUNNING"
    result: SqlResult | None = None
    error: MosaicError | None = None
    ended_at: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Statements:
    """Starts statements, finds them again for whoever started them, and stops them. Safe for threads."""

    def __init__(self, sql: Sql, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sql, self._clock = sql, clock
        self._lock = threading.Lock()
        self._known: dict[str, Running] = {}

    def start(self, statement: str, principal: Principal, **how: Any) -> Running:
        """Begin a statement on a thread of its own; `how` is what `Sql.query` takes."""
        with self._lock:
            self._forget()
            mine = [
                one for one in self._known.values() if one.ended_at is None and one.principal.name == principal.name
            ]
            if len(mine) >= MAX_OPEN:
                raise RateLimited(f"{len(mine)} statements of {principal.name!r} have not ended; wait or cancel some")
            running = Running(new_id("stm"), principal)
            self._known[running.statement_id] = running
        threading.Thread(target=self._run, args=(running, statement, how), name="sql-statement", daemon=True).start()
        return running

    def get(self, statement_id: str, principal: Principal) -> Running:
        """A statement of this principal, or of any for an administrator; raises NotFound."""
        with self._lock:
            self._forget()
            running = self._known.get(statement_id)
        if running is None or not (principal.is_admin or principal.name == running.principal.name):
            raise NotFound(
                f"no statement {statement_id!r}: it is not yours, was taken by another process, or ended more than "
                f"{KEEP_SECONDS} s ago",
                code="statement_not_found",
            )
        return running

    def cancel(self, statement_id: str, principal: Principal) -> None:
        """Ask a statement to stop; one that has ended stays as it is."""
        self.get(statement_id, principal).cancelled.set()

    def _run(self, running: Running, statement: str, how: dict[str, Any]) -> None:
        state: State = "FAILED"
        try:
            running.result = self._sql.query(statement, principal=running.principal, cancelled=running.cancelled, **how)
            state = "SUCCEEDED"
        except MosaicError as error:
            running.error = error
            state = "CANCELED" if error.code == "cancelled" else "FAILED"
        except Exception:
            # A boundary: the thread has no caller to raise to, the client gets a shape and the log the traceback.
            logger.exception("statement %s failed", running.statement_id)
            running.error = MosaicError("something failed inside the platform; its log has the reason")
        finally:
            running.state, running.ended_at = state, self._clock()
            running.done.set()

    def _forget(self) -> None:
        """Old results first, then as many as are too much; holds the lock."""
        now = self._clock()
        ended = sorted(
            (one for one in self._known.values() if one.ended_at is not None), key=lambda one: -(one.ended_at or 0)
        )
        size = 0
        for one in ended:
            size += one.result.rows.nbytes if one.result is not None else 0
            if now - (one.ended_at or 0) > KEEP_SECONDS or size > KEEP_RESULTS_BYTES:
                del self._known[one.statement_id]
