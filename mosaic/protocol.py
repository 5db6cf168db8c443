"""The words that rooms and processes exchange: who is calling, what a model is asked, what it answers.

One engine protocol for everything that can answer (vLLM, an embedder, later a custom model, a provider, an agent): the
gateway resolves an endpoint to a served entity and speaks `Engine` with it, whatever stands behind.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

PREDICT_INPUTS = ("dataframe_split", "dataframe_records", "inputs", "instances")
"""MLflow's four ways to say what is to be predicted from; a request has exactly one."""


class Wire(BaseModel):
    """What crosses a process: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Principal(Wire):
    """Who is calling, as the one authentication middleware found out."""

    name: str
    """A user's or a service's name, as in the catalog."""
    kind: Literal["user", "service"] = "user"
    """`service` for the platform's own calls."""
    is_admin: bool = False
    """Whether it may change the platform itself."""
    token_id: str | None = None
    """The token it came with; None in process."""
    scopes: tuple[str, ...] = ("all-apis",)
    """Which surfaces the token opens; `all-apis` for every one."""
    request_id: str | None = None
    """The request that it came with, for the audit; None in process."""
    source_ip_address: str | None = None
    """Where that request came from, as far as the connection tells."""
    user_agent: str | None = None
    """What the client says it is; a claim, kept for the audit."""


class Message(Wire):
    """One message of a chat, in OpenAI's shape; content is plain text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None


class StreamOptions(Wire):
    include_usage: bool = False
    """Whether the stream ends with a chunk that carries `usage`."""


class ChatRequest(Wire):
    """The part of OpenAI's /v1/chat/completions that is honoured; any other field is a 400 that names it."""

    model: str = Field(min_length=1)
    """The endpoint's name."""
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    user: str | None = None
    """The caller's own label for its user; recorded, never trusted as an identity."""
    metadata: dict[str, str] | None = None
    """The caller's own labels; recorded with the request."""


class EmbeddingRequest(Wire):
    """The part of OpenAI's /v1/embeddings that is honoured."""

    model: str = Field(min_length=1)
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class Usage(Wire):
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Adapter(Wire):
    """A LoRA adapter to answer with, on top of the engine's base model."""

    name: str
    """The model version's full name, such as `main.ml.bot/3`: unique for its weights, and what the engine loads."""


class EngineRequest(Wire):
    """What the gateway asks of an engine."""

    request_id: str
    task: Literal["chat", "embed", "predict"]
    body: dict[str, Any]
    """For `chat` OpenAI's fields, without `model`; for `embed` {"input": [text, ...]}; for `predict`
    MLflow's, such as {"dataframe_records": [...]}, and an empty one asks for the model's own example."""
    adapter: Adapter | None = None
    stream: bool = False


class Retrieved(Wire):
    """What was looked up for a request, exact enough to look it up again."""

    index: str
    version: int
    """The table's version that the index was exact at."""
    ids: list[str]
    """Best first."""


class Engine(Protocol):
    """Whatever answers.

    `chat` yields OpenAI `chat.completion.chunk` objects if `request.stream`, of which the last carries `usage`;
    otherwise exactly one `chat.completion` object. `embed` yields exactly one {"embeddings": [[float, ...], ...],
    "prompt_tokens": int}, `predict` exactly one {"predictions": ...}. Raises BadRequest for what the model cannot take
    (too long, not of its signature), EngineFailed for its own failures.
    """

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]: ...
