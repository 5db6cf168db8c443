"""A row for every request: opened when it arrives, closed once when it ends, durable before its last byte leaves.

The gateway writes to a local log and never waits for the lakehouse; the shipper on the same node carries the log into
the Delta inference table, exactly once (`mosaic.data.ship`).
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from mosaic.data.wal import Log
from mosaic.errors import MosaicError
from mosaic.monitoring.keeping import Keeping
from mosaic.protocol import Principal, Retrieved, Usage


class Exchange:
    """One request on its way. Fields are noted as they become known; `close` writes the row, once."""

    def __init__(self, entry: Any, row: dict[str, Any], on_close: Callable[[Mapping[str, Any]], None]) -> None:
        self._entry = entry
        self._row = row
        self._on_close = on_close
        self._late: dict[str, Callable[[], Any]] = {}
        self._when_answered: list[Callable[[], None]] = []
        self._principal: Principal | None = None
        self._started = time.perf_counter()
        self.closed = False
        self.is_guarded = False
        """Whether guardrails read what is asked before anything keeps it."""
        self.headers: dict[str, str] = {}
        """Of the answer, beside its own."""
        self.keeping: Keeping | None = None
        """What of its texts is kept, if not all."""
        self.cache_control = ""
        """What the request says about answers that were kept."""

    @property
    def request_id(self) -> str:
        return str(self._row["request_id"])

    def note(self, **fields: Any) -> None:
        """Add columns of the row (see `mosaic.monitoring.record.SCHEMA`)."""
        self._row.update(fields)

    def get(self, column: str) -> Any:
        """What the row has so far; None if nothing."""
        return self._row.get(column)

    def note_late(self, **fields: Callable[[], Any]) -> None:
        """Add columns whose values are asked for when the row is closed."""
        self._late.update(fields)

    def when_answered(self, do: Callable[[], None]) -> None:
        """Do this as the row is closed, if its status is 200: all of the answer was there to be read."""
        self._when_answered.append(do)

    def tell(self, headers: Mapping[str, str]) -> None:
        """Add headers to the answer, whatever it will be; those that come after it has begun are lost."""
        self.headers.update(headers)

    def tell_wait(self, seconds: float) -> None:
        """When a client may ask again: what OpenAI's obey by themselves."""
        self.tell({"retry-after-ms": str(math.ceil(seconds * 1e3)), "retry-after": str(math.ceil(seconds))})

    @property
    def principal(self) -> Principal:
        """Who asks; known once the request is authenticated."""
        assert self._principal is not None, "nothing is asked of an endpoint before who asks is known"
        return self._principal

    def note_principal(self, principal: Principal) -> None:
        self._principal = principal
        self.note(principal=principal.name, token_id=principal.token_id)

    def note_endpoint(self, name: str, config_version: int, usage_context: str | None = None) -> None:
        self.note(endpoint=name, endpoint_config_version=config_version)
        if usage_context is not None:
            self.note(usage_context=usage_context)

    def note_retrieved(self, retrieved: Retrieved) -> None:
        self.note(retrieved_index=retrieved.index, retrieved_version=retrieved.version, retrieved_ids=retrieved.ids)

    def note_usage(self, usage: Usage) -> None:
        self.note(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)

    def note_error(self, error: MosaicError) -> None:
        """Without its words where no text may be kept: they may quote some."""
        hides = self.keeping is not None and self.keeping.redacts
        self.note(error=f"{error.code}: {error.param}" if hides else error.message)

    def note_first_token(self) -> None:
        self._row.setdefault("first_token_milliseconds", self._elapsed_milliseconds())

    async def close(self, status: int) -> None:
        """Write the row and wait until it is on disk; later calls do nothing."""
        if not self.closed:
            self.closed = True
            await self._entry.close_durable(self._finish(status))

    def close_now(self, status: int) -> None:
        """Write the row without waiting for the disk, for where nothing can be awaited (a client that went away)."""
        if not self.closed:
            self.closed = True
            self._entry.close(self._finish(status))

    def _finish(self, status: int) -> dict[str, Any]:
        late = {name: value() for name, value in self._late.items()}
        row = {**self._row, **late, "status_code": status, "duration_milliseconds": self._elapsed_milliseconds()}
        if status == 200:
            for do in self._when_answered:
                do()
        self._on_close(row)
        return row if self.keeping is None else self.keeping.of(row)

    def _elapsed_milliseconds(self) -> float:
        return round((time.perf_counter() - self._started) * 1e3, 3)


class Ledger:
    """Opens exchanges on this gateway's log; `on_close` sees each row as it is written."""

    def __init__(
        self, log: Log, gateway: str, on_close: Callable[[Mapping[str, Any]], None] = lambda row: None
    ) -> None:
        self._log, self._gateway, self._on_close = log, gateway, on_close

    def open(self, request_id: str, **fields: Any) -> Exchange:
        """Open the row: written at once (it survives a kill -9), not yet fsynced."""
        row = {"request_id": request_id, "request_time": time.time_ns() // 1000, "gateway": self._gateway, **fields}
        return Exchange(self._log.open(request_id, row), row, self._on_close)

    async def keep(self, row: dict[str, Any]) -> None:
        """Write a row that is no request's; returns when it is on disk."""
        await self._log.append_durable(row)

    def close(self) -> None:
        """Give the log back; what is still open is shipped as lost."""
        self._log.close()
