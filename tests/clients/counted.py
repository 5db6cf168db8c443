"""How often an official client really asks: its HTTP client with a count of the requests that leave."""

from typing import Any


class Counted:
    """`http_client` is for `OpenAI(http_client=...)`, made by the SDK's own class (`DefaultHttpxClient`)."""

    def __init__(self, make: Any, *, is_async: bool = False) -> None:
        self.requests = 0

        def seen(request: Any) -> None:
            self.requests += 1

        async def seen_async(request: Any) -> None:
            seen(request)

        self.http_client = make(event_hooks={"request": [seen_async if is_async else seen]})
