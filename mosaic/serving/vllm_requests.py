"""Our engine protocol in vLLM's words: what is asked becomes one of its requests, its answers and refusals come back.

vLLM names the field of a refusal only sometimes; where it does not, its words tell which of the fields that were sent
it is about.
"""

import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingCompletionRequest,
    ErrorResponse,
    ScoreRequest,
    TokenizeChatRequest,
)
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.exceptions import VLLMClientError

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.protocol import EngineRequest

Built = TypeVar("Built", bound=BaseModel)

_TOO_LONG = ("maximum context length", "max_model_len", "maximum model length")
_LONG_FIELDS = {"chat": "messages", "count": "messages", "complete": "prompt", "embed": "input", "score": "documents"}
"""By task, the field of the client's request that makes it long."""


async def ask(engine: VLLMEngine, request: EngineRequest, model: str) -> AsyncIterator[dict[str, Any]]:
    """See `mosaic.protocol.Engine`; `model` is the base model's name or the adapter's."""
    if request.task not in _LONG_FIELDS:
        raise Unprocessable(f"{model!r} does not {request.task}")
    try:
        async for item in _answers(engine, request, model):
            yield item
    except MosaicError:
        raise
    except Exception as error:  # vLLM's own classes must not cross to the gateway, which does not have it loaded
        raise as_error(str(error) or type(error).__name__, 500, None, request) from error


async def _answers(engine: VLLMEngine, request: EngineRequest, model: str) -> AsyncIterator[dict[str, Any]]:
    if request.task in ("chat", "complete"):
        async for item in _generate(engine, request, model):
            yield item
    elif request.task == "embed":
        told = {"model": model, "encoding_format": "base64", **request.body}
        answer = await _first(engine.embeddings(_build(EmbeddingCompletionRequest, told, request)), request)
        vectors = [np.frombuffer(b64decode(one["embedding"]), dtype="<f4").tolist() for one in answer["data"]]
        yield {"embeddings": vectors, "prompt_tokens": answer["usage"]["prompt_tokens"]}
    elif request.task == "count":
        told = {"model": model, "add_generation_prompt": True, **request.body}
        answer = await _first(engine.tokenize(_build(TokenizeChatRequest, told, request)), request)
        yield {"prompt_tokens": answer["count"]}
    else:
        left, right = zip(*request.body["pairs"], strict=True)
        told = {"model": model, "text_1": list(left), "text_2": list(right)}
        answer = await _first(engine.score(_build(ScoreRequest, told, request)), request)
        scores = [one["score"] for one in sorted(answer["data"], key=lambda one: one["index"])]
        yield {"scores": scores, "prompt_tokens": answer["usage"]["prompt_tokens"]}


async def _generate(engine: VLLMEngine, request: EngineRequest, model: str) -> AsyncIterator[dict[str, Any]]:
    told = {**request.body, "model": model, "stream": request.stream, "request_id": request.request_id}
    if request.stream:
        told["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if request.task == "chat":
        answers = engine.chat(_build(ChatCompletionRequest, told, request), None)
    else:
        answers = engine.completions(_build(CompletionRequest, told, request), None)
    opening: dict[int, dict[str, Any]] = {}
    has_begun = is_whole = False
    async for answer in answers:
        if isinstance(answer, ErrorResponse):
            raise as_error(answer.error.message, int(answer.error.code), answer.error.param, request)
        if not isinstance(answer, str):
            yield _as_openai(answer.model_dump(mode="json", exclude_none=True))
            continue
        for event in answer.split("\n\n"):
            data = event.removeprefix("data: ").strip()
            if data and data != "[DONE]":
                chunk = json.loads(data)
                if "error" in chunk:
                    error = chunk["error"]
                    if has_begun:
                        raise EngineFailed(error["message"])
                    raise as_error(error["message"], int(error.get("code") or 500), error.get("param"), request)
                if not has_begun and _is_opening(chunk):
                    # Who speaks is said with the first token, or never if the client gets a status instead.
                    opening |= {choice["index"]: choice["delta"] for choice in chunk["choices"]}
                    continue
                has_begun = True
                is_whole = is_whole or any(choice.get("finish_reason") for choice in chunk["choices"])
                for choice in chunk["choices"] if opening else ():
                    choice["delta"] = {**opening.pop(choice["index"], {}), **choice["delta"]}
                yield chunk
    if request.stream and not is_whole:
        # vLLM ends a stream in silence when a grammar that passed its checks does not compile.
        if has_begun:
            raise EngineFailed("the engine ended the stream before the answer was whole")
        raise as_error("Internal server error", 500, None, request)


def _is_opening(chunk: dict[str, Any]) -> bool:
    """Whether it says who speaks, or what was read, and nothing yet."""
    said = [{field for field, value in choice.get("delta", {}).items() if value} for choice in chunk["choices"]]
    return all(fields == {"role"} for fields in said)


def _as_openai(answer: dict[str, Any]) -> dict[str, Any]:
    """A message that calls tools has a content too, null."""
    for choice in answer["choices"]:
        if "message" in choice:
            choice["message"].setdefault("content", None)
    return answer


def _build(shape: type[Built], told: Mapping[str, Any], request: EngineRequest) -> Built:
    try:
        return shape(**told)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        raise as_error(first["msg"], 400, field, request) from None
    except (ValueError, VLLMClientError) as error:
        raise as_error(str(error), 400, getattr(error, "parameter", None), request) from None


async def _first(answers: AsyncIterator[Any], request: EngineRequest) -> dict[str, Any]:
    async for answer in answers:
        if isinstance(answer, ErrorResponse):
            raise as_error(answer.error.message, int(answer.error.code), answer.error.param, request)
        found: dict[str, Any] = answer.model_dump(mode="json")
        return found
    raise EngineFailed("the engine ended without an answer")


def as_error(message: str, code: int, param: str | None, request: EngineRequest) -> MosaicError:
    """vLLM's refusal as ours: which field of the request it is about, and what its user can do."""
    reason = re.sub(r" \(parameter=[^)]*\)$", "", message)
    if "does not support the" in reason and "task" in reason:
        return Unprocessable(f"the model does not {request.task}: {reason}", param="model")
    constraint = next((field for field in ("response_format", "structured_outputs") if field in request.body), None)
    if not 400 <= code < 500:
        if constraint is not None and reason == "Internal server error":
            # What passes vLLM's own checks and still does not compile ends the request so; the log has the reason.
            return BadRequest(f"the engine cannot follow {constraint}: it does not compile", param=constraint)
        return EngineFailed(reason)
    field = param if param in request.body else _field_of(reason, request, constraint)
    if any(words in reason for words in _TOO_LONG):
        return BadRequest(reason, param=field, code="context_length_exceeded")
    if "tool-call-parser" in reason:
        reason = (
            f"{field} needs an engine with a parser for the calls that its model writes: set "
            "engine: {tool_call_parser: hermes}, or another of vLLM's parsers, where the endpoint is made"
        )
    return BadRequest(reason, param=field)


def _field_of(reason: str, request: EngineRequest, constraint: str | None) -> str | None:
    body = request.body
    if any(words in reason for words in _TOO_LONG):
        return _LONG_FIELDS[request.task]
    if constraint is not None and re.search(r"grammar|schema|structured output|regex|choice", reason, re.IGNORECASE):
        return constraint
    if "tools" in body and re.search(r"tool|grammar|schema", reason, re.IGNORECASE):
        return "tool_choice" if "tool_choice" in body and "tool" in reason else "tools"
    return next((word for word in re.findall(r"\w+", reason) if word in body), None)
