"""What went wrong at a provider, as one of our errors: whether the client, the provider or its key is to blame.

    what came                      error                 client  another entity?
    400, 413, 422                  ProviderRejected      400     no: the same request would be refused again
    401, 402, 403                  ProviderFailed        502     yes (`provider_credentials`: ours, not the client's)
    404                            ProviderFailed        502     yes (`provider_model_not_found`)
    408, no answer in time         ProviderTimeout       504     yes
    429                            ProviderRateLimited   429     yes
    other 4xx, 3xx, 5xx, no connection, an answer that is none
                                   ProviderFailed        502     yes
    any of it after the first chunk has left
                                   EngineDied            502     no: the client has read a part

A provider's own words are passed on only where the client can act on them, without what is or looks like a key.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import orjson

from mosaic.errors import (
    EngineDied,
    EngineFailed,
    MosaicError,
    ProviderFailed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
)

CREDENTIALS, BUSY = "provider_credentials", "provider_busy"
Outcome = Literal["ok", "failed", "rate_limited", "credentials", "unrelated"]
"""Of one request, as it counts for the provider's health; `unrelated` says nothing about it."""

_LONGEST_MESSAGE = 500
_LONGEST_WAIT_SECONDS = 86_400.0
_LOOKS_LIKE_A_KEY = re.compile(
    r"\bbearer\s+\S+|\b(sk|pk|rk|gsk|xai|hf|nvapi|pplx|csk|r8|fw|mosaic)[-_][\w*.-]{4,}|\b(AIza|dapi)\w{10,}"
    r"|\b(org|proj)[-_](?=\w*\d)\w{8,}"
    r"|\S*\*{3,}\S*|\beyJ[\w-]{8,}[\w.-]*",
    re.IGNORECASE,
)
"""`Bearer ...`, keys by how providers begin them, our account there, what is starred in part, a JWT: providers repeat
them."""

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout_error": 408,
}
"""An error within a stream has no HTTP status, but a type, Anthropic's or OpenAI's; others are the provider's fault."""


class Failures:
    """The failures of one external model; `who` is how messages name it, `secret` what they must never show."""

    def __init__(self, who: str, secret: str) -> None:
        self._who, self._secret = who, secret

    def __repr__(self) -> str:
        return f"Failures({self._who!r})"

    def of_status(self, status: int, body: bytes, headers: Mapping[str, str]) -> MosaicError:
        """The error of an answer whose status is not 200."""
        return self._of(status, _told(body), retry_after_seconds(headers))

    def of_event(self, error: object) -> MosaicError:
        """The error that a stream reports in an event of its own, `error` being what the event says of it."""
        told = error if isinstance(error, Mapping) else {"message": error}
        code = told.get("code")
        if isinstance(code, int) and 400 <= code < 600:
            return self._of(code, told, None)
        return self._of(_STATUS_OF_TYPE.get(str(told.get("type")), 500), told, None)

    def timeout(self, what: str, seconds: float) -> ProviderTimeout:
        return ProviderTimeout(f"{self._who} {what} within {seconds:g} s")

    def failed(self, what: str, *, code: str | None = None) -> ProviderFailed:
        return ProviderFailed(f"{self._who} {self.scrubbed(what)}", code=code)

    def busy(self, at_a_time: int, seconds: float) -> ProviderRateLimited:
        told = f"{self._who} has {at_a_time} requests at a time, and none ended within {seconds:g} s"
        return ProviderRateLimited(told, code=BUSY, retry_after_seconds=max(seconds, 1.0))

    def scrubbed(self, text: str) -> str:
        """Without the key, without what looks like one, in one line that is not too long."""
        if self._secret:
            text = text.replace(self._secret, "***")
        # Shortened before it is searched, which takes time quadratic in the length of a word, and again after it.
        text = _LOOKS_LIKE_A_KEY.sub("***", " ".join(text.split())[: 2 * _LONGEST_MESSAGE])
        return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."

    def _of(self, status: int, told: Mapping[str, Any], wait_seconds: float | None) -> MosaicError:
        message = told.get("message")
        reason = self.scrubbed(message) if isinstance(message, str) and message else f"status {status}"
        match status:
            case 400 | 413 | 422:
                param, code = (self._short(told.get(field)) for field in ("param", "code"))
                return ProviderRejected(f"{self._who} refused the request: {reason}", param=param, code=code)
            case 401 | 402 | 403:  # without its words, which are about our key
                return self.failed(f"does not accept the platform's key (status {status})", code=CREDENTIALS)
            case 404:
                return self.failed(f"has no such model or path: {reason}", code="provider_model_not_found")
            case 408:
                return ProviderTimeout(f"{self._who} gave up waiting: {reason}")
            case 429:
                return ProviderRateLimited(
                    f"{self._who} asks to wait: {reason}", retry_after_seconds=wait_seconds, code=None
                )
            case _ if 300 <= status < 400:
                return self.failed(f"answered with a redirect (status {status}), which is not followed")
            case _:
                return self.failed(f"failed with status {status}: {reason}")

    def _short(self, value: object) -> str | None:
        return self.scrubbed(value)[:100] if isinstance(value, str) and value else None


def _told(body: bytes) -> Mapping[str, Any]:
    """What the body of a refusal says: {"error": {"message": ...}}, or the same without `error`; else nothing."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(told, dict):
        return {}
    error = told.get("error", told)
    return error if isinstance(error, dict) else {"message": error}


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """`retry-after-ms`, or `retry-after` in seconds or as a date (RFC 9110); None where neither makes sense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
            except (ValueError, TypeError):
                continue
        if seconds == seconds:
            return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)
    return None


async def final_after_first(answers: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The answers; a failure after the first of them is EngineDied, which no other entity may make good."""
    has_begun = False
    async with aclosing(answers):
        try:
            async for item in answers:
                has_begun = True
                yield item
        except MosaicError as error:
            if has_begun:
                raise EngineDied(f"{error.message}, after the answer had begun", code=error.code) from None
            raise


def outcome(error: BaseException | None) -> Outcome:
    """How a request's end counts for the health of its provider; None: it was answered."""
    if error is None or isinstance(error, ProviderRejected):
        return "ok"
    if isinstance(error, ProviderRateLimited):
        return "unrelated" if error.code == BUSY else "rate_limited"
    if isinstance(error, EngineFailed):
        return "credentials" if error.code == CREDENTIALS else "failed"
    return "unrelated"
