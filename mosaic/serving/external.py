"""A served entity whose model is not ours: which provider answers, by which connection, and how long it may take."""

from typing import Literal

from pydantic import Field

from mosaic.settings import Settings


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
