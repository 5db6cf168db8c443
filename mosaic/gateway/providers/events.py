"""Server-sent events out of the pieces in which they arrive (https://html.spec.whatwg.org/multipage/server-sent-events).

Only `data` is kept: OpenAI sends nothing else, and Anthropic repeats an event's name in its data.
"""

_LARGEST_EVENT_BYTES = 4 * 2**20


class EventTooLarge(ValueError):
    """An event that does not end."""


class Events:
    """Splits a stream at its blank lines; an event may be cut anywhere, also between the two signs of a line's end."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are whole now. Raises EventTooLarge."""
        self._pieces.append(data)
        self._size_bytes += len(data)
        found: list[bytes] = []
        if b"\n" in data:  # else no event ends here, and joining again and again would take quadratic time
            joined = b"".join(self._pieces)
            if b"\r" in joined:
                joined = joined.replace(b"\r\n", b"\n")
            *events, rest = joined.split(b"\n\n")
            found = [told for event in events if (told := _data(event)) is not None]
            self._pieces, self._size_bytes = [rest], len(rest)
        if self._size_bytes > _LARGEST_EVENT_BYTES:
            raise EventTooLarge(f"an event has more than {_LARGEST_EVENT_BYTES:,} bytes")
        return found


def _data(event: bytes) -> bytes | None:
    """None for an event without data, such as a comment that keeps the connection alive."""
    if b"\n" not in event:
        return event[5:].strip() if event.startswith(b"data:") else None
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
