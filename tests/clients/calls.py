"""What a client's script does with its calls: make them, check what came back, and say which worked.

Runs in the clients' environment, with nothing of mosaic; standard library only. A script reads what it is offered from
its standard input, and its last line on the standard output is JSON: the client, its version, and its calls.
"""

import datetime as dt
import json
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any


class Calls:
    """The calls of one client, in the order made; one that did other than it should is kept as failed."""

    def __init__(self, *packages: str) -> None:
        self.offered = SimpleNamespace(**json.loads(sys.stdin.read()))
        self._packages = packages
        self._made: list[dict[str, str]] = []

    def works(self, name: str, call: Callable[[], Any], check: Callable[[Any], bool] = lambda answer: True) -> Any:
        """The call returns, and what it returned is right; returns it, None if it is not."""
        try:
            answer = call()
            right = check(answer)
        except Exception as error:
            return self._keep(name, "failed", "".join(traceback.format_exception_only(error)).strip())
        if right:
            self._keep(name, "works", "")
            return answer
        return self._keep(name, "failed", f"answered {answer!r}")

    def refused(self, name: str, call: Callable[[], Any], why: str) -> None:
        """The server refuses it, with `why` in the message that the client shows."""
        self._raises(name, call, why, "refused")

    def not_offered(self, name: str, call: Callable[[], Any], why: str) -> None:
        """The client does not get as far as a request that could be answered, or has no use for the answer."""
        self._raises(name, call, why, "not offered")

    def say(self) -> None:
        version = ", ".join(f"{package} {metadata.version(package)}" for package in self._packages)
        print(json.dumps({"client": version, "calls": self._made}))

    def _raises(self, name: str, call: Callable[[], Any], why: str, outcome: str) -> None:
        try:
            answer = call()
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            return self._keep(name, outcome, why) if why in told else self._keep(name, "failed", told)
        return self._keep(name, "failed", f"answered {answer!r}, and should have been refused: {why}")

    def _keep(self, name: str, outcome: str, note: str) -> None:
        self._made.append({"call": name, "outcome": outcome, "note": note})


def said(value: object) -> object:
    """A value as JSON can say it, the same way as offered.py."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return value if isinstance(value, int | float | str | list | None) else str(value)
