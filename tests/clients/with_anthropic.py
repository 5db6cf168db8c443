"""anthropic, at the gateway: messages, tools, counts, errors, waits."""

import asyncio
import time

import anthropic

from tests.clients.calls import Calls
from tests.clients.counted import Counted

calls = Calls("anthropic")
gateway = calls.offered.gateways["anthropic"]
ADDRESS, TOKEN = gateway["address"], gateway["token"]
one = anthropic.Anthropic(base_url=ADDRESS, api_key=TOKEN, max_retries=0)
HELLO = [{"role": "user", "content": "hello there world"}]
CALL = [{"role": "user", "content": 'call: weather {"day": "sunday"}'}]
TOOLS = [{"name": "weather", "input_schema": {"type": "object", "properties": {"day": {"type": "string"}}}}]


def message(model="echo", messages=HELLO, client=one, **more):
    return client.messages.create(model=model, max_tokens=20, messages=messages, **more)


def streamed(messages=HELLO, **more):
    with one.messages.stream(model="echo", max_tokens=20, messages=messages, **more) as stream:
        text = "".join(stream.text_stream)
        return text, stream.get_final_message()


def tool_turn():
    called = message(messages=CALL, tools=TOOLS)
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "it rains"}
    turns = [*CALL, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    return called.stop_reason, called.content[0].input, message(messages=turns, tools=TOOLS).content[0].text


def left_in_mid_stream():
    slow, began = [{"role": "user", "content": "slow: " + "word " * 50}], time.monotonic()
    with one.messages.stream(model="echo", max_tokens=99, messages=slow) as stream:
        next(iter(stream.text_stream))
    return message().content[0].text, time.monotonic() - began < 3


calls.works(
    "messages.create",
    lambda: message(system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]),
    lambda answer: (
        (answer.content[0].text, answer.stop_reason, answer.usage.input_tokens) == ("hello there world", "end_turn", 5)
    ),
)
calls.works(
    "messages.create, several turns",
    lambda: message(messages=[*HELLO, {"role": "assistant", "content": "hello"}, *CALL]),
    lambda answer: answer.content[0].text == CALL[0]["content"],
)
calls.works(
    "messages.create, stream=True",
    lambda: [event.type for event in message(stream=True)],
    lambda kinds: (kinds[0], kinds[1], kinds[-1]) == ("message_start", "content_block_start", "message_stop"),
)
calls.works(
    "messages.stream",
    streamed,
    lambda found: found[0] == "hello there world" == found[1].content[0].text and found[1].usage.output_tokens == 3,
)
calls.works(
    "a tool, called and answered",
    tool_turn,
    lambda found: found == ("tool_use", {"day": "sunday"}, "it rains"),
)
calls.works(
    "messages.stream, a tool",
    lambda: streamed(CALL, tools=TOOLS)[1].content[0],
    lambda use: (use.type, use.input) == ("tool_use", {"day": "sunday"}),
)
calls.works(
    "messages.count_tokens",
    lambda: one.messages.count_tokens(model="echo", system="be brief", messages=HELLO).input_tokens,
    lambda count: count == message(system="be brief").usage.input_tokens,
)
calls.works("a stream that its client leaves", left_in_mid_stream, lambda found: found == ("hello there world", True))
calls.works(
    "auth_token in place of api_key",
    lambda: message(client=anthropic.Anthropic(base_url=ADDRESS, auth_token=TOKEN, max_retries=0)),
    lambda answer: answer.model == "echo",
)
calls.refused(
    "messages.create, with an image, of a model that reads text",
    lambda: message(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]),
    "reads text alone",
)
calls.refused("messages.create, a field that is not spoken", lambda: message(inference_geo="eu"), "inference_geo")
calls.refused("messages.batches.list", lambda: one.messages.batches.list(), "no path '/v1/messages/batches'")


# Without waiting
async def asynchronously():
    async with anthropic.AsyncAnthropic(base_url=ADDRESS, api_key=TOKEN, max_retries=0) as client:
        many = [client.messages.create(model="echo", max_tokens=20, messages=HELLO) for _ in range(20)]
        answers = {answer.content[0].text for answer in await asyncio.gather(*many)}
        async with client.messages.stream(model="echo", max_tokens=20, messages=HELLO) as stream:
            pieces = [text async for text in stream.text_stream]
        return answers, "".join(pieces)


calls.works(
    "AsyncAnthropic: 20 at once, a stream",
    lambda: asyncio.run(asynchronously()),
    lambda found: found == ({"hello there world"}, "hello there world"),
)


# Errors, as the classes of the client
def raises(kind, status, ask):
    try:
        ask()
    except kind as error:
        told = error.response.json()
        return (error.status_code, told["type"], told["request_id"]) == (status, "error", error.request_id)
    return False


unknown = anthropic.Anthropic(base_url=ADDRESS, api_key="mosaic_unknown", max_retries=0)
fail = [{"role": "user", "content": "fail: x y"}]
stranger = anthropic.Anthropic(base_url=ADDRESS, api_key=gateway["stranger"], max_retries=0)
for kind, status, ask in (
    (anthropic.BadRequestError, 400, lambda: message(stop_sequences=[""])),
    (anthropic.AuthenticationError, 401, lambda: message(client=unknown)),
    (anthropic.PermissionDeniedError, 403, lambda: message(client=stranger)),
    (anthropic.NotFoundError, 404, lambda: message("nope")),
    (anthropic.RequestTooLargeError, 413, lambda: message(messages=[{"role": "user", "content": "x" * 1_100_000}])),
    (anthropic.RateLimitError, 429, lambda: message("shut")),
    (anthropic.InternalServerError, 502, lambda: message(messages=fail)),
):
    calls.works(f"{status} is {kind.__name__}", lambda kind=kind, s=status, ask=ask: raises(kind, s, ask), bool)


def fails_in_mid_stream():
    try:
        list(message(messages=fail, stream=True))
    except anthropic.APIStatusError as error:
        return error.body["error"]["message"]


calls.works("a failure in mid-stream is an APIStatusError", fails_in_mid_stream, lambda told: "asked to fail" in told)


# Waits
def waits():
    counted = Counted(anthropic.DefaultHttpxClient)
    patient = anthropic.Anthropic(base_url=ADDRESS, api_key=TOKEN, max_retries=3, http_client=counted.http_client)
    for _ in range(2):
        message("limited")
    message("clock", [{"role": "user", "content": "57"}])
    raw = patient.messages.with_raw_response.create(model="limited", max_tokens=20, messages=HELLO)
    return raw.retries_taken, counted.requests, raw.headers["x-ratelimit-limit-requests"]


def gives_up():
    counted = Counted(anthropic.DefaultHttpxClient)
    patient = anthropic.Anthropic(base_url=ADDRESS, api_key=TOKEN, max_retries=5, http_client=counted.http_client)
    return raises(anthropic.RateLimitError, 429, lambda: message("shut", client=patient)), counted.requests


calls.works("429 with retry-after-ms: asks once more, when it may", waits, lambda found: found == (1, 2, "2"))
calls.works("429 with x-should-retry: false: asks once", gives_up, lambda found: found == (True, 1))
calls.works(
    "with_raw_response: request-id is the answer's id",
    lambda: one.messages.with_raw_response.create(model="echo", max_tokens=20, messages=HELLO),
    lambda raw: raw.parse().id == raw.headers["request-id"],
)
calls.say()
