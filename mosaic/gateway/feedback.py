"""POST /v1/feedback: a rating or a correction, for the request that an answer's id names."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, NotFound
from mosaic.gateway.requests import Asked
from mosaic.ids import new_id
from mosaic.monitoring import Ledger
from mosaic.monitoring.feedback import AskedBefore, as_row, may_tell
from mosaic.protocol import Principal

_LONGEST = 100_000
_MOST_LABELS = 32

Text = Annotated[str, Field(min_length=1, max_length=_LONGEST)]
Label = Annotated[str, Field(min_length=1, max_length=256)]


class FeedbackRequest(Asked):
    """What somebody says of one answer; each time it is another row."""

    request_id: str = Field(min_length=1, max_length=100)
    """`id` of the answer, or its `x-request-id`."""
    rating: float | None = Field(default=None, ge=-1, le=1)
    """From -1 (bad) to 1 (good): thumbs are the two ends, and stars stand between them."""
    correction: Text | None = None
    """What the answer should have been."""
    comment: Text | None = None
    metadata: dict[Label, Text] | None = Field(default=None, max_length=_MOST_LABELS)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.rating is None and self.correction is None and self.comment is None:
            raise BadRequest("feedback needs a rating, a correction or a comment", param="rating")
        return self


class Feedback:
    """Takes what is said of requests that there were; it is on disk before who said it is told so."""

    def __init__(
        self,
        find: Callable[[str], AskedBefore | None],
        catalog: Catalog,
        ledger: Ledger,
        *,
        wait_seconds: float = 3.0,
        look_seconds: float = 0.5,
    ) -> None:
        """`find` finds a request by its id (`mosaic.monitoring.feedback.requests_finder`). The row of one that another
        node answered just now is waited for, and looked for again and again: it is shipped every second."""
        self._find, self._catalog, self._ledger = find, catalog, ledger
        self._wait_seconds, self._look_seconds = wait_seconds, look_seconds

    async def take(self, told: FeedbackRequest, principal: Principal) -> dict[str, Any]:
        """Raises NotFound, for a request of somebody else's too, unless its endpoint is the principal's to MANAGE."""
        asked = await self._asked(told.request_id)
        may = asked is not None and await asyncio.to_thread(may_tell, self._catalog, principal, asked)
        if asked is None or not may:
            raise NotFound(
                f"no request {told.request_id!r} of yours, or of an endpoint that you manage",
                param="request_id",
                code="request_not_found",
            )
        feedback_id = new_id("fbk")
        said = told.model_dump(exclude={"request_id"}, exclude_none=True)
        await self._ledger.keep(as_row(asked, principal, feedback_id, datetime.now(UTC), said))
        return {"id": feedback_id, "object": "feedback", "request_id": asked.request_id}

    async def _asked(self, request_id: str) -> AskedBefore | None:
        deadline = time.monotonic() + self._wait_seconds
        while True:
            found = await asyncio.to_thread(self._find, request_id)
            if found is not None or time.monotonic() > deadline:
                return found
            await asyncio.sleep(self._look_seconds)
