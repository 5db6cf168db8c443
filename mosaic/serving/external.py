"""A served entity whose model is not ours: which provider answers, by which connection, and how long it may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from mosaic.errors import BadRequest
from mosaic.settings import Settings

_DEFAULT_BASE_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


class ExternalModel(Settings):
    """A model that an external provider answers with; named as Databricks' `external_model`."""

    provider: Literal["openai", "anthropic", "custom"]
    """Whose protocol is spoken: OpenAI's, Anthropic's, or OpenAI's with a server of another (`custom`)."""
    name: str = Field(min_length=1, max_length=256)
    """The model's name at the provider, such as `gpt-5` or `claude-opus-5`."""
    connection: str = Field(min_length=1)
    """The catalog connection whose options hold `base_url` (required for `custom`) and, as a secret, `api_key`."""

    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    """Until a connection is there."""
    headers_timeout_seconds: float = Field(default=60.0, gt=0)
    """Until a stream's headers are there, connecting included. An answer that comes whole has
    `answer_timeout_seconds` for it, since it is generated before."""
    chunk_timeout_seconds: float = Field(default=60.0, gt=0)
    """Between two pieces of an answer that has begun; a provider's sign of life without words counts as one."""
    answer_timeout_seconds: float = Field(default=600.0, gt=0)
    """For all of an answer."""
    max_answer_bytes: int = Field(default=64 * 2**20, ge=1)
    """What an answer may have in all, as it is sent."""

    max_concurrency: int = Field(default=64, ge=1)
    """Requests that one replica of the gateway has there at a time."""
    concurrency_wait_seconds: float = Field(default=1.0, ge=0)
    """How long a request waits for its turn before it is a 429."""
    max_tokens: int = Field(default=4096, ge=1)
    """What a request that says no limit asks of Anthropic, whose protocol requires one; others are asked without."""


@dataclass(frozen=True)
class Access:
    """Where a provider is, and the key that it knows us by. Its repr does not show the key."""

    base_url: str
    api_key: str = field(default="", repr=False)
    """Nothing for a server that asks for none."""

    @classmethod
    def of(cls, model: ExternalModel, options: Mapping[str, str], secrets: Mapping[str, str]) -> "Access":
        """From a catalog connection; raises BadRequest for an address or a key that cannot be one."""
        url = options.get("base_url") or _DEFAULT_BASE_URLS.get(model.provider)
        if url is None:
            raise BadRequest(f"connection {model.connection!r} has no option base_url", param="base_url")
        key = secrets.get("api_key", "").strip()
        if not key.isascii() or any(not "!" <= sign <= "~" for sign in key):
            raise BadRequest(f"api_key of connection {model.connection!r} has signs that no key has", param="api_key")
        return cls(check_base_url(url), key)


def check_base_url(url: str) -> str:
    """The address without a slash at its end; raises BadRequest for one that is not plainly http(s)://host[:port]/path.

    Says nothing about where the host is: that is checked at each connection.
    """
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        raise BadRequest("base_url is not an address", param="base_url") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        # Not shown: what stands there is a secret.
        raise BadRequest("base_url has a user in it; the key is an option of its own, api_key", param="base_url")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise BadRequest(f"base_url = {url!r:.200} must be http:// or https:// with a host", param="base_url")
    if parts.query or parts.fragment or not url.isascii() or any(sign <= " " or sign == "\\" for sign in url):
        raise BadRequest(f"base_url = {url!r:.200} must be a plain address, without ?, # or spaces", param="base_url")
    return url.rstrip("/")
