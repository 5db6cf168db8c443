"""The words that rooms and processes exchange: who is calling, what a model is asked, what it answers.

One engine protocol for everything that can answer (vLLM, an embedder, later a custom model, a provider, an agent): the
gateway resolves an endpoint to a served entity and speaks `Engine` with it, whatever stands behind.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    """The image itself (`data:image/png;base64,...`), or where it is (https://)."""
    detail: Literal["auto", "low", "high"] | None = None
    """How closely it is to be looked at."""


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class CalledFunction(Wire):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Wire):
    """One message of a chat, in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None
    """Text, whole or in parts; None only where the assistant calls tools. Images are only for users."""
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    """The call that a `tool` message answers."""
    reasoning: str | None = None
    """What the model thought before it answered, where its engine tells the two apart."""
    reasoning_content: str | None = None
    """The same, as other servers call it."""
    refusal: None = None
    """OpenAI's clients send these back with an answer, empty."""
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _of_its_role(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"content is required of a message whose role is {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id is required of messages whose role is 'tool', and only theirs")
        parts = self.content if isinstance(self.content, list) else ()
        if self.role != "user" and any(isinstance(part, ImagePart) for part in parts):
            raise ValueError("image_url is only for messages whose role is 'user'")
        for field in ("tool_calls", "reasoning", "reasoning_content"):
            if self.role != "assistant" and getattr(self, field) is not None:
                raise ValueError(f"{field} is only for messages whose role is 'assistant'")
        return self

    @property
    def text(self) -> str:
        """The content as one text, without images."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""


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
    task: Literal["chat", "complete", "embed", "score", "predict", "count"]
    body: dict[str, Any]
    """For `chat` and `complete` OpenAI's fields, without `model`; for `count` those of a chat that a model reads; for
    `embed` {"input": [text, ...]} and perhaps `dimensions`; for `score` {"pairs": [[text, text], ...]}; for `predict`
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

    `chat` yields OpenAI `chat.completion.chunk` objects if `request.stream`, of which the last carries `usage`, and the
    others may carry what it is so far; otherwise exactly one `chat.completion` object; `complete` the same with
    `text_completion`. `embed` yields exactly one {"embeddings": [[float, ...], ...], "prompt_tokens": int}, `score` one
    {"scores": [float, ...], "prompt_tokens": int}, `count` one {"prompt_tokens": int}, `predict` one
    {"predictions": ...}. Raises BadRequest for what the model cannot take (too long, not of its signature),
    Unprocessable for a task that is not its own, EngineFailed for its own failures.
    """

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]: ...
