"""openai, at the gateway: chats, completions, tools, responses, moderations' refusal, errors, waits."""

import asyncio
import time

import openai

from tests.clients.calls import Calls
from tests.clients.counted import Counted

calls = Calls("openai")
gateway = calls.offered.gateways["openai"]
ADDRESS, TOKEN = f"{gateway['address']}/v1", gateway["token"]
one = openai.OpenAI(base_url=ADDRESS, api_key=TOKEN, max_retries=0)
HELLO = [{"role": "user", "content": "hello there world"}]
CALL = [{"role": "user", "content": 'call: weather {"day": "sunday"}'}]
SCHEMA = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


def said(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def streamed_usage():
    options = {"include_usage": True}
    chunks = list(one.chat.completions.create(model="echo", messages=HELLO, stream=True, stream_options=options))
    return [chunk.usage.completion_tokens for chunk in chunks if chunk.usage], chunks[-1].choices


def tool_turn():
    called = one.chat.completions.create(model="echo", messages=CALL, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "it rains"}
    again = one.chat.completions.create(model="echo", messages=[*CALL, called, result], tools=TOOLS)
    return called.tool_calls[0].function.arguments, again.choices[0].message.content


def streamed_tool():
    with one.chat.completions.stream(model="echo", messages=CALL, tools=TOOLS) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().choices[0].message.tool_calls[0].function.arguments


def left_in_mid_stream():
    slow = [{"role": "user", "content": "slow: " + "word " * 50}]
    stream = one.chat.completions.create(model="echo", messages=slow, stream=True)
    began = time.monotonic()
    next(iter(stream))
    stream.close()
    again = one.chat.completions.create(model="echo", messages=HELLO).choices[0].message.content
    return again, time.monotonic() - began < 3


# Models
calls.works("models.list", lambda: one.models.list().data, lambda all: "echo" in [model.id for model in all])
calls.works("models.retrieve", lambda: one.models.retrieve("echo"), lambda model: model.owned_by == "mosaic")

# Chats and completions
calls.works(
    "chat.completions.create",
    lambda: one.chat.completions.create(model="echo", messages=HELLO),
    lambda answer: answer.choices[0].message.content == "hello there world" and answer.usage.completion_tokens == 3,
)
calls.works(
    "chat.completions.create, streamed",
    lambda: said(one.chat.completions.create(model="echo", messages=HELLO, stream=True)),
    lambda text: text == "hello there world",
)
calls.works("stream_options.include_usage", streamed_usage, lambda found: found == ([3], []))
calls.works("a tool, called and answered", tool_turn, lambda found: found == ('{"day": "sunday"}', "it rains"))
calls.works("chat.completions.stream, a tool", streamed_tool, lambda told: told == '{"day": "sunday"}')
calls.works(
    "completions.create",
    lambda: one.completions.create(model="echo", prompt=["one two", "three"], n=2),
    lambda answer: [choice.text for choice in answer.choices] == ["one two", "one two", "three", "three"],
)
calls.works("a stream that its client leaves", left_in_mid_stream, lambda found: found == ("hello there world", True))

# Responses
calls.works(
    "responses.create",
    lambda: one.responses.create(model="echo", instructions="be brief", input="one two"),
    lambda answer: (answer.output_text, answer.status, answer.usage.output_tokens) == ("one two", "completed", 2),
)


def streamed_response():
    with one.responses.stream(model="echo", input="one two") as stream:
        kinds = [event.type for event in stream]
        return kinds[0], kinds[-1], stream.get_final_response().output_text


def response_tool_turn():
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    first = one.responses.create(model="echo", input=CALL[0]["content"], tools=tools)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "it rains"}
    asked = [{"role": "user", "content": CALL[0]["content"]}, *first.output, result]
    return first.output[0].arguments, one.responses.create(model="echo", input=asked, tools=tools).output_text


calls.works(
    "responses.stream",
    streamed_response,
    lambda found: found == ("response.created", "response.completed", "one two"),
)
calls.works(
    "responses: a tool, called and answered",
    response_tool_turn,
    lambda found: found == ('{"day": "sunday"}', "it rains"),
)
calls.refused(
    "responses.create, after an earlier one",
    lambda: one.responses.create(model="echo", input="x", previous_response_id="resp_1"),
    "models keep none",
)
calls.refused(
    "responses.create, to be kept", lambda: one.responses.create(model="echo", input="x", store=True), "store"
)
calls.refused("moderations.create, of a chat", lambda: one.moderations.create(model="echo", input="x"), "classifier")


# Without waiting
async def asynchronously():
    async with openai.AsyncOpenAI(base_url=ADDRESS, api_key=TOKEN, max_retries=0) as client:
        many = [client.chat.completions.create(model="echo", messages=HELLO) for _ in range(20)]
        answers = [answer.choices[0].message.content for answer in await asyncio.gather(*many)]
        stream = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        response = await client.responses.create(model="echo", input="one two")
        return set(answers), "".join(pieces), response.output_text


calls.works(
    "AsyncOpenAI: 20 at once, a stream, a response",
    lambda: asyncio.run(asynchronously()),
    lambda found: found == ({"hello there world"}, "hello there world", "one two"),
)


# Errors, as the classes of the client
def raises(kind, status, ask):
    try:
        ask()
    except kind as error:
        return error.status_code == status and bool(error.request_id) and error.type is not None
    return False


def chat(model="echo", messages=HELLO, client=one, **more):
    return client.chat.completions.create(model=model, messages=messages, **more)


unknown = openai.OpenAI(base_url=ADDRESS, api_key="mosaic_unknown", max_retries=0)
stranger = openai.OpenAI(base_url=ADDRESS, api_key=gateway["stranger"], max_retries=0)
fail = [{"role": "user", "content": "fail: x y"}]
for kind, status, ask in (
    (openai.BadRequestError, 400, lambda: chat(temperature=9)),
    (openai.AuthenticationError, 401, lambda: chat(client=unknown)),
    (openai.PermissionDeniedError, 403, lambda: chat(client=stranger)),
    (openai.NotFoundError, 404, lambda: chat("nope")),
    (openai.UnprocessableEntityError, 422, lambda: one.embeddings.create(model="echo", input="x")),
    (openai.RateLimitError, 429, lambda: chat("shut")),
    (openai.InternalServerError, 502, lambda: chat(messages=fail)),
):
    calls.works(f"{status} is {kind.__name__}", lambda kind=kind, s=status, ask=ask: raises(kind, s, ask), bool)


def fails_in_mid_stream():
    try:
        list(chat(messages=fail, stream=True))
    except openai.APIError as error:
        return error.message


calls.works("a failure in mid-stream is an APIError", fails_in_mid_stream, lambda told: "asked to fail" in told)


# Waits
def waits():
    counted = Counted(openai.DefaultHttpxClient)
    patient = openai.OpenAI(base_url=ADDRESS, api_key=TOKEN, max_retries=3, http_client=counted.http_client)
    for _ in range(2):
        left = chat("limited", client=one.with_options(max_retries=0))
    chat("clock", [{"role": "user", "content": "57"}])
    raw = patient.chat.completions.with_raw_response.create(model="limited", messages=HELLO)
    return (
        left.choices[0].message.content,
        raw.retries_taken,
        counted.requests,
        raw.headers["x-ratelimit-limit-requests"],
    )


def gives_up():
    counted = Counted(openai.DefaultHttpxClient)
    patient = openai.OpenAI(base_url=ADDRESS, api_key=TOKEN, max_retries=5, http_client=counted.http_client)
    return raises(openai.RateLimitError, 429, lambda: chat("shut", client=patient)), counted.requests


calls.works(
    "429 with retry-after-ms: asks once more, when it may",
    waits,
    lambda found: found == ("hello there world", 1, 2, "2"),
)
calls.works("429 with x-should-retry: false: asks once", gives_up, lambda found: found == (True, 1))
calls.works(
    "with_raw_response: x-request-id is the answer's id",
    lambda: one.chat.completions.with_raw_response.create(model="echo", messages=HELLO),
    lambda raw: raw.parse().id == raw.headers["x-request-id"],
)
calls.say()
