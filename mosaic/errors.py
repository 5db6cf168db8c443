"""Every error mosaic raises on purpose, and the HTTP status of each.

    MosaicError                500  something of ours failed
    |-- BadRequest             400  the request, a setting or a row is not acceptable as it stands
    |   |-- UnsupportedField   400  a field that this version does not honour
    |   |-- ContentFiltered    400  a guardrail refuses what is asked or answered
    |   `-- ProviderRejected   400  an external provider refused the request as it stands, in its own words
    |-- Unauthenticated        401  no token, or one that is unknown, expired or revoked
    |-- PermissionDenied       403  the principal may not do this
    |-- NotFound               404  nothing has that name; the message lists what exists
    |-- MethodNotAllowed       405  the path exists, the method does not
    |-- Conflict               409  somebody else changed or holds it
    |   |-- AlreadyExists      409  the name is taken
    |   |-- StaleEtag          412  changed since it was read
    |   `-- PlatformLocked     409  another `mosaic up` holds this root
    |-- TooLarge               413  the body is over the limit
    |-- Unprocessable          422  well-formed, but not for this object (a chat asked of an embedder)
    |-- RateLimited            429  later, or less
    |   `-- ProviderRateLimited 429 an external provider asks to wait, or has all the requests it may have
    |-- Unimplemented          501  a part of a protocol that this version does not speak
    |-- EngineFailed           502  the model's engine answered with an error
    |   |-- EngineDied         502  it died before its answer was whole
    |   `-- ProviderFailed     502  an external provider gave no answer
    |       `-- ProviderTimeout 504 not within its time
    `-- Unavailable            503  a part is not there (not started, not reachable, does not fit)

Messages say what was asked and what exists. Every class pickles, since errors cross Ray.
"""

from collections.abc import Iterable
from typing import Any


class MosaicError(Exception):
    """Base of all. `code` is the machine-readable reason, `param` the field it is about (if any)."""

    status = 500
    code = "internal_error"
    may_fail_over = False
    """Whether another served entity may be asked instead, as long as nothing of the answer has left."""
    retry_after_seconds: float | None = None
    """When it may be asked again, where that is known."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.param, self.code))


def _rebuild(cls: type[MosaicError], message: str, param: str | None, code: str) -> MosaicError:
    return cls(message, param=param, code=code)


class BadRequest(MosaicError):
    status = 400
    code = "invalid_request"


class UnsupportedField(BadRequest):
    code = "unsupported_field"


class ContentFiltered(BadRequest):
    code = "content_filter"


class ProviderRejected(BadRequest):
    code = "provider_rejected"


class Unauthenticated(MosaicError):
    status = 401
    code = "invalid_api_key"


class PermissionDenied(MosaicError):
    status = 403
    code = "permission_denied"


class NotFound(MosaicError):
    status = 404
    code = "not_found"


class MethodNotAllowed(MosaicError):
    status = 405
    code = "method_not_allowed"


class Conflict(MosaicError):
    status = 409
    code = "conflict"


class AlreadyExists(Conflict):
    code = "already_exists"


class StaleEtag(Conflict):
    status = 412
    code = "stale_etag"


class PlatformLocked(Conflict):
    code = "platform_locked"


class TooLarge(MosaicError):
    status = 413
    code = "request_too_large"


class Unprocessable(MosaicError):
    status = 422
    code = "unprocessable"


class RateLimited(MosaicError):
    status = 429
    code = "rate_limit_exceeded"


class ProviderRateLimited(RateLimited):
    """`retry_after_seconds` is what the provider said, None if it said nothing."""

    code = "provider_rate_limited"
    may_fail_over = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"retry_after_seconds": self.retry_after_seconds})


class Unimplemented(MosaicError):
    status = 501
    code = "unimplemented"


class EngineFailed(MosaicError):
    status = 502
    code = "engine_failed"
    may_fail_over = True


class EngineDied(EngineFailed):
    code = "engine_died"


class ProviderFailed(EngineFailed):
    code = "provider_failed"


class ProviderTimeout(ProviderFailed):
    status = 504
    code = "provider_timeout"


class Unavailable(MosaicError):
    status = 503
    code = "unavailable"
    may_fail_over = True


def not_found(kind: str, asked: str, existing: Iterable[str], *, param: str | None = None) -> NotFound:
    """The one wording of a name that is not there: `no endpoint 'gtp'; there are ['echo', 'gpt']`."""
    names = sorted(existing)
    shown = names if len(names) <= 20 else [*names[:20], f"... {len(names) - 20} more"]
    there = f"there are {shown}" if names else "there is none that you may see"
    return NotFound(f"no {kind} {asked!r}; {there}", param=param, code=f"{kind.replace(' ', '_')}_not_found")
