"""What may be asked at `/v1/responses`, and the chat that it is
(https://platform.openai.com/docs/api-reference/responses).

Nothing is kept between requests: what needs a state (`store`, `previous_response_id`, `conversation`, `background`) is
a 400 that names it.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mosaic.errors import BadRequest
from mosaic.gateway.requests import Asked, ChatRequest, InContext, Text
from mosaic.gateway.retold import retold

_TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_NEED_A_STATE = ("store", "previous_response_id", "conversation", "background")
Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Asked):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    """Clients send these two back with an answer, empty."""
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class ImagePart(Asked):
    type: Literal["input_image"]
    image_url: Text
    """The image itself (`data:image/png;base64,...`), or where it is (https://)."""
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None
    """No files are kept here."""


class Item(Asked):
    """What all items may have; it came with the answer that they were part of."""

    id: str | None = None
    status: Status | None = None


class SaidItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1)]


class CallItem(Item):
    type: Literal["function_call"]
    call_id: Text
    name: str = Field(pattern=_TOOL_NAME)
    arguments: str


class ResultItem(Item):
    type: Literal["function_call_output"]
    call_id: Text
    output: str | list[TextPart]


class ThoughtPart(Asked):
    type: Literal["reasoning_text"]
    text: str


class ThoughtItem(Item):
    type: Literal["reasoning"]
    summary: list[Any] = Field(default_factory=list, max_length=0)
    content: list[ThoughtPart] | None = None
    encrypted_content: None = None


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[SaidItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ThoughtItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Asked):
    type: Literal["function"]
    name: str = Field(pattern=_TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenFunction(Asked):
    type: Literal["function"]
    name: str


class PlainFormat(Asked):
    type: Literal["text", "json_object"]


class SchemaFormat(Asked):
    type: Literal["json_schema"]
    name: str = Field(pattern=_TOOL_NAME)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextConfig(Asked):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None


class ResponseStreamOptions(Asked):
    include_obfuscation: bool = False
    """Only false: nothing is put beside the words to hide how long they are."""

    @field_validator("include_obfuscation")
    @classmethod
    def _without(cls, include_obfuscation: bool) -> bool:
        if include_obfuscation:
            raise ValueError("must be false")
        return include_obfuscation


class ResponsesRequest(InContext):
    """`/v1/responses`."""

    model: str = Field(min_length=1)
    """The endpoint's name."""
    input: Text | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    """What the system says first."""
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    """What is too long is refused."""
    user: str | None = None
    """The caller's own label for its user; recorded, never trusted as an identity."""
    metadata: dict[str, str] | None = None
    """The caller's own labels; recorded with the request, and answered."""
    store: bool | None = None
    previous_response_id: None = None
    conversation: None = None
    background: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_state(cls, fields: Any) -> Any:
        for field in _NEED_A_STATE if isinstance(fields, dict) else ():
            if fields.get(field) is not None and fields[field] is not False:
                told = f"{field} = {fields[field]!r:.80} needs answers that are kept, and models keep none"
                raise BadRequest(f"{told}: leave it out, and send the whole conversation as input", param=field)
        return fields

    def as_chat(self) -> ChatRequest:
        """The same as a chat; raises BadRequest for what no chat can be."""
        named = {
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": [_tool(tool) for tool in self.tools or ()] or None,
            "tool_choice": self._tool_choice(),
            "parallel_tool_calls": self.parallel_tool_calls if self.tools else None,
            "response_format": self._response_format(),
            "user": self.user,
            "metadata": self.metadata,
            "usage_context": self.usage_context,
        }
        said = {field: value for field, value in named.items() if value is not None}
        return retold({"model": self.model, "messages": self._messages(), "stream": self.stream, **said})

    def _tool_choice(self) -> Any:
        choice = self.tool_choice
        if isinstance(choice, ChosenFunction):
            return {"type": "function", "function": {"name": choice.name}}
        return choice if self.tools or choice == "required" else None

    def _response_format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None or form.type == "text":
            return None
        if isinstance(form, PlainFormat):
            return {"type": form.type}
        told = form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": "json_schema", "json_schema": told}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        turn: dict[str, Any] | None = None
        """The assistant's, as long as nobody else speaks: what it thought, said and called is one message of a chat."""
        for place, item in enumerate(self.input):
            if isinstance(item, ResultItem) or (isinstance(item, SaidItem) and item.role != "assistant"):
                turn = None
                messages.append(_of_others(item))
                continue
            if turn is None or not _goes_on(turn, item):
                turn = {"role": "assistant", "content": None}
                messages.append(turn)
            _add(turn, item)
            if turn["content"] is None and "tool_calls" not in turn and place + 1 == len(self.input):
                raise BadRequest(f"input.{place}: nothing follows the reasoning", param=f"input.{place}")
        for message in messages:
            if message["role"] == "assistant" and message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        return messages


def _of_others(item: SaidItem | ResultItem) -> dict[str, Any]:
    if isinstance(item, ResultItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    return {"role": item.role, "content": _text(item.content)}


def _goes_on(turn: dict[str, Any], item: SaidItem | CallItem | ResultItem | ThoughtItem) -> bool:
    """Whether it is part of the same message: thought, then said, then called."""
    if isinstance(item, CallItem):
        return True
    if isinstance(item, SaidItem):
        return turn["content"] is None and "tool_calls" not in turn
    return False


def _add(turn: dict[str, Any], item: SaidItem | CallItem | ResultItem | ThoughtItem) -> None:
    if isinstance(item, ThoughtItem):
        turn["reasoning"] = "".join(part.text for part in item.content or ())
    elif isinstance(item, SaidItem):
        turn["content"] = _text(item.content)
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def _text(content: str | Sequence[TextPart | ImagePart]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if len(content) == 1 and isinstance(content[0], TextPart):
        return content[0].text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail or "auto"}}
        for part in content
    ]


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
