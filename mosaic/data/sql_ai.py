"""`ai_query('endpoint', prompt)` in SQL: read from the statement, and asked for the engine by its parent.

The engine's child process reaches no network. It sends the prompts to its parent through the pipe that they share, and
the parent asks the gateway, as the statement's caller: the same grants, limits and records as a client's.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pyarrow as pa

from mosaic.catalog import Catalog
from mosaic.catalog.work_tokens import check_may_ask, work_token
from mosaic.client import Client
from mosaic.errors import BadRequest, MosaicError
from mosaic.protocol import Principal

NAME = "ai_query"
OPTIONS = {"max_tokens": int, "temperature": float, "top_p": float, "seed": int, "system_prompt": str}
"""What may be said by name after the prompt, as constants."""

_TOKEN_SECONDS_MORE = 60


def read_call(node: dict[str, Any]) -> str:
    """The endpoint of a call in the parser's tree, which becomes one of three texts: endpoint, prompt, options.

    Raises BadRequest for an endpoint or option that is no constant, so that grants are checked before anything runs.
    """
    given = [(one["name"] or "", one["expression"]) for one in node["arguments"]]
    if len(given) < 2 or given[0][0] or given[1][0]:
        raise BadRequest(f"{NAME} takes an endpoint's name, a prompt, and options by name: {NAME}('assistant', text)")
    literal = given[0][1].get("literal") or {}
    if literal.get("kind") != "STRING":
        raise BadRequest(f"the endpoint of {NAME} must be a text such as 'assistant', not computed", param="statement")
    options = {name: _option(name, expression) for name, expression in given[2:]}
    if len(options) < len(given) - 2:
        raise BadRequest(f"{NAME} has an option twice", param="statement")
    told = {"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": ""}
    told |= {key: given[0][1][key] for key in ("query_location", "query_location_length") if key in given[0][1]}
    written = {**told, "literal": {"kind": "STRING", "text": json.dumps(options)}}
    node["arguments"] = [*node["arguments"][:2], {"name": "", "expression": written}]
    return str(literal["text"])


def _option(name: str, expression: Mapping[str, Any]) -> Any:
    if name not in OPTIONS:
        raise BadRequest(f"{NAME} has no option {name!r}; there are {list(OPTIONS)}, by name: max_tokens => 50")
    literal, kind = expression.get("literal") or {}, OPTIONS[name]
    try:
        if (literal.get("kind") == "STRING") != (kind is str):
            raise ValueError
        return kind(literal["text"])
    except (KeyError, ValueError):
        raise BadRequest(f"option {name!r} of {NAME} must be a constant {kind.__name__}", param="statement") from None


class AiCalls:
    """The calls of one statement. Used by one thread at a time."""

    def __init__(self, client: Client, *, most_rows: int, concurrency: int) -> None:
        self._client, self._left, self._most, self._concurrency = client, most_rows, most_rows, concurrency
        self.error: MosaicError | None = None
        """What ended the statement, in our own words: the engine has others."""

    def answer(self, asked: pa.Table, stopped: Callable[[], bool]) -> list[str]:
        """A response for each row of endpoint, prompt and options; raises what the gateway answered, and BadRequest for
        more rows than a statement may ask about. `stopped` breaks it off."""
        try:
            self._left -= asked.num_rows
            if self._left < 0:
                raise BadRequest(
                    f"{NAME} is called for more than {self._most:,} rows, which is all that one statement may; use a "
                    "batch job (mosaic batch infer), or a LIMIT in a subquery",
                    code="too_many_calls",
                )
            rows = zip(*(asked.column(place).to_pylist() for place in range(3)), strict=True)
            return asyncio.run(self._all(list(rows), stopped))
        except MosaicError as error:
            self.error = error
            raise

    async def _all(self, rows: Sequence[tuple[str, str, str]], stopped: Callable[[], bool]) -> list[str]:
        turns = asyncio.Semaphore(self._concurrency)
        tasks = [asyncio.ensure_future(self._one(turns, *row)) for row in rows]
        whole = asyncio.gather(*tasks)
        try:
            while not stopped():
                done, _ = await asyncio.wait([whole], timeout=0.1)
                if done:
                    return list(whole.result())
            raise BadRequest("the statement has ended", code="cancelled")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, turns: asyncio.Semaphore, endpoint: str, prompt: str, options: str) -> str:
        given: dict[str, Any] = json.loads(options)
        system = given.pop("system_prompt", None)
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        async with turns:
            try:
                said = await self._client.ask_async(
                    "/v1/chat/completions", {"model": endpoint, "messages": messages, **given}
                )
            except MosaicError as error:
                raise type(error)(f"{NAME}({endpoint!r}): {error.message}", code=error.code) from None
        return str(said["choices"][0]["message"].get("content") or "")


class AiQueries:
    """Who asks endpoints for statements: the gateway at `base_url`, with a token of the caller's for as long as it
    takes."""

    def __init__(self, catalog: Catalog, base_url: str) -> None:
        self._catalog, self._base_url = catalog, base_url

    def check(self, endpoints: Sequence[str], principal: Principal) -> list[tuple[str, int]]:
        """Their full names and live configurations; raises NotFound, PermissionDenied without EXECUTE or
        with a token that opens no endpoints."""
        found = []
        for name in endpoints:
            full = self._catalog.endpoints.full_name(name)
            self._catalog.grants.check(principal, "EXECUTE", "endpoint", full, action="queryEndpoint")
            check_may_ask(self._catalog, principal, "queryEndpoint")
            found.append((full, self._catalog.endpoints.get(full).config_version))
        return found

    @contextmanager
    def calls(self, principal: Principal, *, seconds: float, most_rows: int, concurrency: int) -> Iterator[AiCalls]:
        """Those of one statement, which ends after `seconds`."""
        lasts, comment = timedelta(seconds=seconds + _TOKEN_SECONDS_MORE), f"a statement's {NAME}"
        with work_token(self._catalog, principal, comment=comment, lasts=lasts, action="queryEndpoint") as secret:
            client = Client(self._base_url, secret, timeout_seconds=seconds, patience_seconds=min(5.0, seconds / 4))
            yield AiCalls(client, most_rows=most_rows, concurrency=concurrency)


class Answering:
    """One lot of calls on its way, in a thread, so that whoever waits can look at the clock."""

    def __init__(self, calls: AiCalls, asked: pa.Table) -> None:
        self._stop, self._calls, self._asked = threading.Event(), calls, asked
        self.answers: list[str] | None = None
        """None: they failed, and the calls have the error."""
        self._thread = threading.Thread(target=self._run, name="sql-ai", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.answers = self._calls.answer(self._asked, self._stop.is_set)
        except MosaicError:
            return  # kept by the calls

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
