"""What may be asked at `/v1/messages` in Anthropic's shape, and the chat that it is
(https://docs.anthropic.com/en/api/messages).

As in `requests`: what stands here is honoured, any other field is a 400 that names it. Caching needs no asking here, so
`cache_control` says nothing that would not be; `providers/anthropic_requests` translates the other way.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mosaic.errors import BadRequest
from mosaic.gateway.requests import Asked, ChatRequest, InContext, Stop, Text
from mosaic.gateway.retold import retold

_TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_LEAST_BUDGET_TOKENS = 1024


class CacheControl(Asked):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Asked):
    """What all blocks may have."""

    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: None = None
    """Anthropic's clients send these back with an answer, empty."""


class ImageData(Asked):
    type: Literal["base64"]
    media_type: Text
    data: str


class ImageAddress(Asked):
    type: Literal["url"]
    url: Text


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[ImageData | ImageAddress, Field(discriminator="type")]

    @property
    def url(self) -> str:
        """As a chat has it."""
        source = self.source
        return source.url if isinstance(source, ImageAddress) else f"data:{source.media_type};base64,{source.data}"


class ToolUse(Block):
    type: Literal["tool_use"]
    id: Text
    name: str = Field(pattern=_TOOL_NAME)
    input: dict[str, Any]


class ToolResult(Block):
    type: Literal["tool_result"]
    tool_use_id: Text
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    """Told to the model as `Error: ` before the content."""


class ThinkingBlock(Asked):
    type: Literal["thinking"]
    thinking: str
    signature: str
    """Ours are empty: reasoning goes back to the model as it came."""


UserBlock = Annotated[TextBlock | ImageBlock | ToolResult, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ToolUse | ThinkingBlock, Field(discriminator="type")]


class UserTurn(Asked):
    role: Literal["user"]
    content: str | Annotated[list[UserBlock], Field(min_length=1)]


class AssistantTurn(Asked):
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantBlock], Field(min_length=1)]


class SystemTurn(Asked):
    role: Literal["system"]
    content: str | Annotated[list[TextBlock], Field(min_length=1)]


class CustomTool(Block):
    name: str = Field(pattern=_TOOL_NAME)
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None


class Choice(Asked):
    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    """The tool, where the type is `tool`."""
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.name is not None) != (self.type == "tool"):
            raise ValueError("name is required of tool_choice where its type is 'tool', and only there")
        return self


class Thinking(Asked):
    """Whether reasoning is told. Whether a model reasons is its own matter, or its engine's."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=_LEAST_BUDGET_TOKENS)
    """Anthropic's target for the reasoning, where the type is `enabled`; what holds is `max_tokens`."""

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if (self.budget_tokens is not None) != (self.type == "enabled"):
            raise ValueError("budget_tokens is required of thinking where its type is 'enabled', and only there")
        return self


class Format(Asked):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Asked):
    format: Format | None = None
    """The answer follows the schema."""


class Metadata(Asked):
    user_id: str | None = None
    """The caller's own label for its user; recorded, never trusted as an identity."""


class CountRequest(InContext):
    """`/v1/messages/count_tokens`: what a model would read."""

    model: str = Field(min_length=1)
    """The endpoint's name."""
    messages: list[Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]] = Field(min_length=1)
    """A last one of the assistant is what its answer begins with."""
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = Field(default=None, max_length=128)
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def as_chat(self) -> ChatRequest:
        """The same as a chat; raises BadRequest for what no chat can be."""
        return retold(self.told())

    def told(self) -> dict[str, Any]:
        """As fields of a chat."""
        system = [] if not self.system else [{"role": "system", "content": _texts(self.system)}]
        chat: dict[str, Any] = {"model": self.model, "messages": [*system, *self._conversation()]}
        if self.usage_context is not None:
            chat["usage_context"] = self.usage_context
        if self.tools:
            chat["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            chat |= _tool_choice(self.tool_choice)
        if self.output_config is not None and self.output_config.format is not None:
            schema = {"name": "answer", "schema": self.output_config.format.schema_}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.messages[-1].role == "assistant":
            chat |= {"continue_final_message": True, "add_generation_prompt": False}
        return chat

    def _conversation(self) -> Iterator[dict[str, Any]]:
        for place, turn in enumerate(self.messages):
            if isinstance(turn, UserTurn):
                yield from _user(turn, f"messages.{place}")
            elif isinstance(turn, AssistantTurn):
                yield _assistant(turn, f"messages.{place}", is_last=place + 1 == len(self.messages))
            else:
                yield {"role": "system", "content": _texts(turn.content)}


class MessagesRequest(CountRequest):
    """`/v1/messages`."""

    max_tokens: int = Field(ge=1, lt=2**31)
    stream: bool = False
    stop_sequences: list[Stop] | None = Field(default=None, max_length=4)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        budget = None if self.thinking is None else self.thinking.budget_tokens
        if budget is not None and budget >= self.max_tokens:
            told = f"thinking.budget_tokens = {budget} must be less than max_tokens = {self.max_tokens}"
            raise BadRequest(told, param="thinking.budget_tokens")
        return self

    @property
    def tells_thinking(self) -> bool:
        """Whether reasoning is part of the answer, where there is some."""
        return self.thinking is None or self.thinking.type != "disabled"

    def told(self) -> dict[str, Any]:
        alike = {field: getattr(self, field) for field in ("max_tokens", "stream", "temperature", "top_p", "top_k")}
        user = None if self.metadata is None else self.metadata.user_id
        stop = self.stop_sequences or None
        return (
            super().told()
            | {field: value for field, value in alike.items() if value is not None}
            | {field: value for field, value in (("stop", stop), ("user", user)) if value is not None}
        )


def _texts(content: str | Sequence[TextBlock | ImageBlock]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if len(content) == 1 and isinstance(content[0], TextBlock):
        return content[0].text
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, TextBlock)
        else {"type": "image_url", "image_url": {"url": block.url}}
        for block in content
    ]


def _user(turn: UserTurn, at: str) -> Iterator[dict[str, Any]]:
    """Results of tools are messages of their own in a chat, and come before what the user says."""
    if isinstance(turn.content, str):
        yield {"role": "user", "content": turn.content}
        return
    said: list[TextBlock | ImageBlock] = []
    for block in turn.content:
        if isinstance(block, TextBlock | ImageBlock):
            said.append(block)
        elif said:
            raise BadRequest(
                f"{at}.content: tool_result blocks must come before text and images", param=f"{at}.content"
            )
        else:
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
    if said:
        yield {"role": "user", "content": _texts(said)}


def _result(block: ToolResult) -> str | list[dict[str, Any]]:
    content = block.content or ""
    if not block.is_error:
        return _texts(content)
    told = content if isinstance(content, str) else "".join(text.text for text in content)
    return f"Error: {told}"


def _assistant(turn: AssistantTurn, at: str, *, is_last: bool) -> dict[str, Any]:
    if isinstance(turn.content, str):
        return {"role": "assistant", "content": turn.content}
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    calls = [_call(block) for block in turn.content if isinstance(block, ToolUse)]
    thoughts = [block.thinking for block in turn.content if isinstance(block, ThinkingBlock)]
    if calls and is_last:
        told = f"{at}: a last message of the assistant is gone on with, and cannot be where it calls tools"
        raise BadRequest(told, param=f"{at}.content")
    message: dict[str, Any] = {"role": "assistant", "content": _texts(texts) if texts else None if calls else ""}
    message |= {"tool_calls": calls} if calls else {}
    return message | ({"reasoning": "".join(thoughts)} if thoughts else {})


def _call(block: ToolUse) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def _tool(tool: CustomTool) -> dict[str, Any]:
    kept = {field: value for field in ("description", "strict") if (value := getattr(tool, field)) is not None}
    return {"type": "function", "function": {"name": tool.name, "parameters": tool.input_schema, **kept}}


def _tool_choice(choice: Choice) -> dict[str, Any]:
    if choice.type == "tool":
        told: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        told = "required" if choice.type == "any" else choice.type
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    return {"tool_choice": told, **parallel}
