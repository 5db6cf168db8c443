"""Whatever a provider does wrong ends in one clear error, as docs/providers.md says, and never shows the key."""

import asyncio
import logging
import pickle
import re
import ssl
import time
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mosaic.errors import (
    BadRequest,
    EngineDied,
    MosaicError,
    ProviderFailed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
)
from mosaic.gateway.providers import ProviderEngines, outcome
from mosaic.gateway.providers.addresses import is_allowed
from mosaic.gateway.providers.failures import Failures, retry_after_seconds
from mosaic.serving.external import Access, ExternalModel, check_base_url
from tests.gateway.provider_calls import KEY, PROVIDERS, Asking, answered, chat, failed, with_double

HASTY = {
    "timeout": {"headers_timeout_seconds": 0.2, "answer_timeout_seconds": 0.4},
    "stall": {"chunk_timeout_seconds": 0.8},
    "endless": {"answer_timeout_seconds": 1.0},
    "pings": {"answer_timeout_seconds": 0.6},
}
"""What has to run out is short; the others have time, however busy the machine is."""
TEXT = "a b c d e f g h i j k l"

# fault, error and code of a stream, whether something was said before, error and code of an answer that comes whole
FAULTS: list[tuple[str, type[MosaicError], str, bool, type[MosaicError], str]] = [
    ("timeout", ProviderTimeout, "provider_timeout", False, ProviderTimeout, "provider_timeout"),
    ("500", ProviderFailed, "provider_failed", False, ProviderFailed, "provider_failed"),
    ("529", ProviderFailed, "provider_failed", False, ProviderFailed, "provider_failed"),
    ("307", ProviderFailed, "provider_failed", False, ProviderFailed, "provider_failed"),
    ("401", ProviderFailed, "provider_credentials", False, ProviderFailed, "provider_credentials"),
    ("404", ProviderFailed, "provider_model_not_found", False, ProviderFailed, "provider_model_not_found"),
    ("429", ProviderRateLimited, "provider_rate_limited", False, ProviderRateLimited, "provider_rate_limited"),
    (
        "429 retry-after",
        ProviderRateLimited,
        "provider_rate_limited",
        False,
        ProviderRateLimited,
        "provider_rate_limited",
    ),
    ("400", ProviderRejected, "", False, ProviderRejected, ""),
    ("422", ProviderRejected, "", False, ProviderRejected, ""),
    ("cut", EngineDied, "provider_broke_off", True, ProviderFailed, "provider_broke_off"),
    ("unfinished", EngineDied, "provider_broke_off", True, ProviderFailed, "provider_malformed"),
    ("stall", EngineDied, "provider_timeout", True, ProviderTimeout, "provider_timeout"),
    ("malformed", EngineDied, "provider_malformed", True, ProviderFailed, "provider_malformed"),
    ("error event", EngineDied, "provider_failed", True, ProviderFailed, "provider_malformed"),
    ("endless", EngineDied, "provider_timeout", True, ProviderTimeout, "provider_timeout"),
    ("pings", ProviderTimeout, "provider_timeout", False, ProviderTimeout, "provider_timeout"),
]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_each_fault_ends_as_documented(provider: str, fault: tuple[Any, ...], caplog: pytest.LogCaptureFixture) -> None:
    asked, streamed, code, has_begun, whole, whole_code = fault
    caplog.set_level(logging.DEBUG)

    async def scenario(asking: Asking) -> list[tuple[list[dict[str, Any]], MosaicError]]:
        engine = asking.engine(provider, **HASTY.get(asked, {}))
        told = f"{TEXT} fault: {asked}"
        return await asyncio.gather(*(failed(engine, chat(told, stream=stream)) for stream in (True, False)))

    (chunks, error), (answers, whole_error) = with_double(scenario)
    assert type(error) is streamed and type(whole_error) is whole, (error, whole_error)
    assert (error.code, whole_error.code) == (code or error.code, whole_code or whole_error.code)
    assert bool(chunks) is has_begun and answers == []
    assert has_begun or error.may_fail_over is (streamed is not ProviderRejected)
    assert not any(choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"])
    for one in (error, whole_error):
        shown = "".join(traceback.format_exception(one)) + repr(pickle.loads(pickle.dumps(one)))
        assert KEY not in shown and KEY not in repr(vars(one))
    assert KEY not in caplog.text


def test_the_table_in_the_docs_has_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    told = set(re.findall(r"^\| `fault: ([^`]+)`", page, re.MULTILINE))
    assert told == {fault for fault, *_ in FAULTS}


def test_a_refusal_is_passed_on_once_in_the_providers_words() -> None:
    async def scenario(asking: Asking) -> MosaicError:
        return (await failed(asking.engine(), chat("fault: 400")))[1]

    error = with_double(scenario)
    assert error.status == 400 and (error.param, error.code) == ("messages", "double_400")
    assert error.message.startswith(
        "the provider of 'm1' refused the request: the double was asked for 400; it got ***"
    )


def test_what_the_provider_says_about_waiting_is_kept_across_processes() -> None:
    async def scenario(asking: Asking) -> MosaicError:
        return (await failed(asking.engine(), chat("fault: 429 retry-after")))[1]

    error = pickle.loads(pickle.dumps(with_double(scenario)))
    assert isinstance(error, ProviderRateLimited) and error.status == 429 and error.retry_after_seconds == 7.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "1e99"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_an_endless_answer_ends_at_its_bytes_too() -> None:
    async def scenario(asking: Asking) -> list[MosaicError]:
        engine = asking.engine(max_answer_bytes=20_000)
        return [(await failed(engine, chat(f"{TEXT} fault: endless", stream=stream)))[1] for stream in (True, False)]

    assert [error.code for error in with_double(scenario)] == ["provider_answer_too_large"] * 2


def test_a_provider_that_is_not_there() -> None:
    async def scenario(asking: Asking) -> MosaicError:
        model = ExternalModel(provider="custom", name="m1", connection="c1")
        access = Access.of(model, {"base_url": "http://127.0.0.1:1/v1"}, {})
        return (await failed(asking.engines.engine(model, access), chat("hello")))[1]

    error = with_double(scenario)
    assert type(error) is ProviderFailed and error.code == "provider_unreachable" and error.may_fail_over
    assert "127.0.0.1" not in error.message and "refused" in error.message.lower()


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    async def scenario(asking: Asking) -> MosaicError:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self_signed(tmp_path / "server.pem"))
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        async with server:
            model = ExternalModel(provider="custom", name="m1", connection="c1")
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            engine = asking.engines.engine(model, Access.of(model, {"base_url": url}, {"api_key": KEY}))
            return (await failed(engine, chat("hello")))[1]

    assert "its certificate is not trusted" in with_double(scenario).message


def self_signed(file: Path) -> Path:
    """A file with a key and a certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    told = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(told + made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return file


def test_what_cannot_be_written_as_json_is_the_clients_to_mend() -> None:
    async def scenario(asking: Asking) -> MosaicError:
        return (await failed(asking.engine(), chat("hello", tools=[{"maximum": 2**70}])))[1]

    assert type(with_double(scenario)) is BadRequest


def test_an_answer_that_is_always_there_still_ends_in_time() -> None:
    """What came faster than it is read needs no waiting, and so meets no timeout of its own."""

    async def scenario(asking: Asking) -> MosaicError:
        answers = asking.engine(answer_timeout_seconds=1.0).answer(chat("tokens: 3000", stream=True))
        with pytest.raises(MosaicError) as error:
            async for _ in answers:
                time.sleep(0.001)
        return error.value

    assert with_double(scenario).code == "provider_timeout"


def test_requests_over_the_limit_wait_for_a_turn_and_then_are_a_429() -> None:
    async def scenario(asking: Asking) -> tuple[MosaicError, list[dict[str, Any]], int]:
        engine = asking.engine(max_concurrency=1, concurrency_wait_seconds=0.05)
        slow = asyncio.create_task(answered(engine, chat("slow: 300 ms")))
        await asyncio.sleep(0.1)
        error = (await failed(engine, chat("hello")))[1]
        await slow
        return error, await answered(engine, chat("hello")), len(asking.double.received)

    error, after, received = with_double(scenario)
    assert type(error) is ProviderRateLimited and error.code == "provider_busy" and error.may_fail_over
    assert error.retry_after_seconds == 1
    assert after and received == 2


def test_a_client_that_goes_away_ends_the_request_at_the_provider() -> None:
    async def scenario(asking: Asking) -> None:
        engine = asking.engine(max_concurrency=1)
        answers = engine.answer(chat("tokens: 1000 slow: 20 ms", stream=True))
        await anext(answers)
        assert asking.double.open_answers == 1
        await answers.aclose()  # type: ignore[attr-defined]
        while asking.double.open_answers:
            await asyncio.sleep(0.01)
        assert await answered(engine, chat("its turn was given back"))

    with_double(scenario)


def test_how_each_end_counts_for_the_providers_health() -> None:
    failures = Failures("the provider", KEY)
    told = {status: outcome(failures.of_status(status, b"", {})) for status in (400, 401, 403, 404, 408, 429, 500)}
    assert told == {
        400: "ok",
        401: "credentials",
        403: "credentials",
        404: "failed",
        408: "failed",
        429: "rate_limited",
        500: "failed",
    }
    assert (outcome(None), outcome(failures.busy(1, 1)), outcome(BadRequest("x"))) == ("ok", "unrelated", "unrelated")
    assert outcome(GeneratorExit()) == outcome(asyncio.CancelledError()) == "unrelated"
    assert outcome(EngineDied("cut", code="provider_broke_off")) == "failed"


@pytest.mark.parametrize(
    "text",
    [
        f"got {KEY}",
        "Limit reached in organization org-Ab12cdabcd",
        "Incorrect API key provided: sk-proj-***abcd.",
        "Bearer abcdef",
        "key eyJhbGciOiJIUzI1NiJ9.e30.x_y",
    ],
)
def test_what_looks_like_a_key_is_not_shown(text: str) -> None:
    shown = Failures("it", KEY).scrubbed(text)
    assert "***" in shown and not re.search(r"0123|abcd|eyJ", shown)


def test_a_key_that_looks_like_none_and_a_message_that_is_long() -> None:
    failures = Failures("it", "hunter2")
    assert failures.scrubbed("hunter2 and hunter2") == "*** and ***"
    assert len(failures.scrubbed("x" * 1_000_000 + "***")) == 500


def test_ordinary_words_are_shown() -> None:
    text = "This model's maximum context length is 8192 tokens; see max_completion_tokens and claude-opus-5."
    assert Failures("it", KEY).scrubbed(text) == text


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "::1", "::", "fd00::1"),
    *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:0:0:0:0:f5ff:fffe", "192.0.2.1", "240.0.0.1"),
]
METADATA = ["169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:a9fe:a9fe"]


@pytest.mark.parametrize("address", [*PRIVATE, *METADATA, "224.0.0.1", "ff02::1"])
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_allowed(address, allow_private=False)


def test_private_addresses_by_setting_and_metadata_never() -> None:
    assert all(is_allowed(one, allow_private=True) for one in PRIVATE if one not in ("0.0.0.0", "::"))
    assert not any(is_allowed(one, allow_private=True) for one in METADATA)
    assert all(is_allowed(one, allow_private=False) for one in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "a..b", "x" * 70]
)
def test_a_private_provider_is_not_connected_to(host: str) -> None:
    async def scenario(asking: Asking) -> tuple[MosaicError, int]:
        engines = ProviderEngines()
        model = ExternalModel(provider="custom", name="m1", connection="c1")
        url = asking.double.url.replace("127.0.0.1", host) + "/v1"
        _, error = await failed(engines.engine(model, Access.of(model, {"base_url": url}, {})), chat("hello"))
        await engines.close()
        return error, len(asking.double.received)

    error, received = with_double(scenario)
    assert received == 0 and type(error) is ProviderFailed, error
    # aiohttp itself refuses numbers that are not written as addresses are.
    assert re.search("not public|InvalidUrl|cannot be reached", error.message)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.b", "file:///etc/passwd", "//a.b", "a.b/v1", "http://", "https://a.b:99999", "https://a b"),
        *("https://user:secret@a.b", "https://@a.b", "https://a.b/v1?key=x", "https://a.b#x", "https://a.b\\@c.d"),
    ],
)
def test_what_is_no_plain_address(url: str) -> None:
    with pytest.raises(BadRequest) as error:
        check_base_url(url)
    assert error.value.param == "base_url" and "secret" not in error.value.message


def test_a_connection_says_where_and_its_key_is_not_shown() -> None:
    model = ExternalModel(provider="custom", name="m1", connection="c1")
    with pytest.raises(BadRequest, match="'c1' has no option base_url"):
        Access.of(model, {}, {})
    with pytest.raises(BadRequest) as error:
        Access.of(model, {"base_url": "https://a.b"}, {"api_key": f"{KEY}\r\nx: y"})
    assert KEY not in error.value.message
    access = Access.of(model, {"base_url": "https://a.b/v1/"}, {"api_key": f"{KEY}\n"})
    assert (access.base_url, access.api_key) == ("https://a.b/v1", KEY) and KEY not in repr(access)
    openai = ExternalModel(provider="openai", name="m1", connection="c1")
    assert Access.of(openai, {}, {}).base_url == "https://api.openai.com/v1"
