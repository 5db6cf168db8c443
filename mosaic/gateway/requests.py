"""What clients may ask of models: OpenAI's fields, and of vLLM's own those that its users name.

What stands here is honoured, by the engine or with the engine's refusal; any other field is a 400 that names it.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mosaic.errors import BadRequest
from mosaic.gateway.schemas import check_regex, check_schemas
from mosaic.monitoring.record import compact_json
from mosaic.protocol import ImagePart, Message, Wire

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_MOST_ANSWERS, _MOST_TEXTS = 128, 2048
"""OpenAI's limits of answers to one request, and of texts in one."""
_IMAGE_BYTES = 4800
"""What an image counts for until its provider has counted: as text of 1,600 tokens, the most that Anthropic's take."""

_MOST_LABELS = 32
Label = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]


class Asked(Wire):
    """As JSON says it: a number in quotes is none, and 1 is not true."""

    model_config = ConfigDict(strict=True)


class InContext(Asked):
    """What every request for an answer may say of itself."""

    usage_context: dict[Label, Label] | None = Field(default=None, max_length=_MOST_LABELS)
    """Databricks': for whom or what the request is, such as a project; in the usage table by its keys."""

    @property
    def context_json(self) -> str | None:
        return None if self.usage_context is None else compact_json(self.usage_context)


class StreamOptions(Asked):
    include_usage: bool = False
    """Whether the stream ends with a chunk that carries `usage`."""


class JsonSchema(Asked):
    name: str = Field(pattern=_NAME)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Taken either way: what is answered always follows the schema."""


class PlainFormat(Asked):
    type: Literal["text", "json_object"]


class SchemaFormat(Asked):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Asked):
    """vLLM's: exactly one of these, which the answer then follows."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema."""
    regex: str | None = Field(default=None, min_length=1)
    choice: list[Text] | None = Field(default=None, min_length=1, max_length=1024)
    """One of these texts."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.json_, self.regex, self.choice].count(None) != 2:
            raise ValueError("must have exactly one of json, regex and choice")
        return self


class Function(Asked):
    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None


class Tool(Asked):
    type: Literal["function"]
    function: Function


class ChosenFunction(Asked):
    name: str


class ChosenTool(Asked):
    type: Literal["function"]
    function: ChosenFunction


class Generation(InContext):
    """What chats and completions have in common: how tokens are drawn, where they end, and in what form."""

    model: str = Field(min_length=1)
    """The endpoint's name."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    n: int | None = Field(default=None, ge=1, le=_MOST_ANSWERS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(default=None, max_length=1024)
    """By the token's number."""
    response_format: PlainFormat | SchemaFormat | None = Field(default=None, discriminator="type")
    user: str | None = None
    """The caller's own label for its user; recorded, never trusted as an identity."""
    metadata: dict[str, str] | None = None
    """The caller's own labels; recorded with the request."""

    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    """From here on vLLM's own. 0 draws from all tokens."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[Text] | None = Field(default=None, max_length=128)
    allowed_token_ids: list[TokenId] | None = Field(default=None, min_length=1)
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        # BadRequest passes through pydantic as it is, and can name a field, which an error of the whole cannot.
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is only for requests with stream = true", param="stream_options")
        if self.structured_outputs is not None and self.response_format is not None:
            raise BadRequest("structured_outputs and response_format exclude each other", param="structured_outputs")
        if isinstance(self.response_format, SchemaFormat):
            check_schemas([self.response_format.json_schema.schema_], "response_format")
        if self.structured_outputs is not None:
            check_schemas([self.structured_outputs.json_ or {}], "structured_outputs")
            check_regex(self.structured_outputs.regex or "", "structured_outputs")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The most that the answers may have together; None if it is not said."""
        return None if self.max_tokens is None else self.max_tokens * (self.n or 1)


class ChatRequest(Generation):
    """/v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, min_length=1, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    """vLLM's own, as the next: false with `continue_final_message` = true goes on with the last message."""
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise BadRequest("max_tokens and max_completion_tokens are the same: give one", param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs = true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt is not False:
            told = "continue_final_message needs add_generation_prompt = false"
            raise BadRequest(told, param="add_generation_prompt")
        names = [tool.function.name for tool in self.tools or ()]
        schemas = [tool.function.parameters or {} for tool in self.tools or ()]
        if schemas:
            check_schemas(schemas, "tools", is_held=False)
        if len(set(names)) != len(names):
            raise BadRequest(f"two tools have the same name: {names}", param="tools")
        if not names:
            for field in ("tool_choice", "parallel_tool_calls"):
                if getattr(self, field) not in (None, "none"):
                    raise BadRequest(f"{field} needs tools", param=field)
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in names:
            told = f"tool_choice names {self.tool_choice.function.name!r}, and the tools are {names}"
            raise BadRequest(told, param="tool_choice")
        return self

    @property
    def prompt_bytes(self) -> int:
        told = [message.text for message in self.messages]
        told += [call.function.arguments for message in self.messages for call in message.tool_calls or ()]
        told += [json.dumps(tool.function.parameters) for tool in self.tools or ()]
        images = sum(
            isinstance(part, ImagePart)
            for message in self.messages
            if isinstance(message.content, list)
            for part in message.content
        )
        return sum(len(text.encode()) for text in told) + images * _IMAGE_BYTES

    @property
    def answer_tokens(self) -> int | None:
        most = self.max_completion_tokens or self.max_tokens
        return None if most is None else most * (self.n or 1)


class CompletionRequest(Generation):
    """/v1/completions: text goes on, without any chat template."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=_MOST_TEXTS)]
    )
    """One text or several, as text or as numbers of tokens; each is answered `n` times, in order."""
    echo: bool | None = None
    """Whether the answer begins with the prompt."""
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def texts(self) -> list[str] | None:
        """The prompts; None if they are numbers of tokens."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [one for one in prompts if isinstance(one, str)] or None

    @property
    def prompt_bytes(self) -> int:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return sum(len(one.encode()) if isinstance(one, str) else _bytes_of_tokens(one) for one in prompts)

    @property
    def answer_tokens(self) -> int | None:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        most = super().answer_tokens
        return most * len(self.prompt) if most is not None and several else most


class EmbeddingRequest(InContext):
    """/v1/embeddings."""

    model: str = Field(min_length=1)
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, lt=2**31)
    """Fewer than the model's own, for models that were trained so (Matryoshka)."""
    user: str | None = None
    answer_tokens: ClassVar[int] = 0

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def prompt_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


class ScoreRequest(InContext):
    """/v1/score, in vLLM's shape: one text against several, or as many pairs as there are."""

    model: str = Field(min_length=1)
    text_1: Text | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
    text_2: Text | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
    user: str | None = None
    answer_tokens: ClassVar[int] = 0

    @property
    def prompt_bytes(self) -> int:
        sizes = {text: len(text.encode()) for pair in self.pairs() for text in pair}
        return sum(sizes[text] for pair in self.pairs() for text in pair)

    def pairs(self) -> list[tuple[str, str]]:
        left = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        right = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(left) == 1:
            left = left * len(right)
        if len(left) != len(right):
            told = f"text_1 has {len(left)} texts and text_2 {len(right)}: text_1 must be one text, or as many"
            raise BadRequest(told, param="text_1")
        return list(zip(left, right, strict=True))


class Document(Asked):
    text: Text


class RerankRequest(InContext):
    """/v1/rerank, in the shape that Jina, Cohere and vLLM share."""

    model: str = Field(min_length=1)
    query: Text
    documents: list[Text | Document] = Field(min_length=1, max_length=_MOST_TEXTS)
    top_n: int | None = Field(default=None, ge=1, lt=2**31)
    """How many are answered, best first; None: all."""
    return_documents: bool = True
    """Whether each result has its document's text."""
    user: str | None = None
    answer_tokens: ClassVar[int] = 0

    @property
    def prompt_bytes(self) -> int:
        texts = self.texts()
        return len(self.query.encode()) * len(texts) + sum(len(text.encode()) for text in texts)

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


def _bytes_of_tokens(tokens: "int | list[int]") -> int:
    """As if they were text."""
    return 4 if isinstance(tokens, int) else 4 * len(tokens)
