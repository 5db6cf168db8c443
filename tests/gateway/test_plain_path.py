"""How much code a plain request runs through: a token, one limit, one rule about personal data, the row, streamed."""

import asyncio
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import mosaic
from mosaic.catalog import Catalog
from mosaic.gateway import Endpoints
from mosaic.gateway.doubles import gateway_in_process

STORY = {
    "gateway/routes.py",
    "gateway/requests.py",
    "gateway/chat.py",
    "gateway/endpoints.py",
    "gateway/limits.py",
    "gateway/guarding.py",
    "gateway/asking.py",
    "gateway/answers.py",
}
"""What a reader of one request reads, in order."""
PARTS = {
    "runtime/asgi.py": "who asks, and what an error looks like,",
    "ids.py": "a request has an id",
    "gateway/quota_shard.py": "a reservation goes to the quota",
    "gateway/budgets.py": "money is held where there are budgets,",
    "gateway/cost.py": "and counted where there is a price",
    "gateway/guards.py": "a text is looked at,",
    "gateway/guard_rules.py": "by rules,",
    "gateway/guard_pii.py": "of which one decides,",
    "gateway/guard_stream.py": "and what was found is replaced",
    "gateway/images.py": "what is asked is written down, images as references,",
    "gateway/cache.py": "answers that were kept come first,",
    "monitoring/ledger.py": "a row is opened and closed,",
    "monitoring/record.py": "as JSON,",
    "data/wal.py": "in a log",
    "protocol.py": "a message is one",
}
"""What the story calls, and what each call does; one need not be opened to follow it."""
ELSEWHERE = {"serving/doubles.py", "gateway/doubles.py", "gateway/quota.py"}
"""The engine, the way to the quota and the quota itself: other processes."""
RULES = {"input": {"pii": {"behavior": "MASK", "types": ["EMAIL_ADDRESS"]}}}
LIMITS = [{"calls": 100, "key": "user"}]


def test_a_plain_request_runs_through_few_lines_in_few_files(tmp_path: Path) -> None:
    root, lines = Path(mosaic.__file__).parent, defaultdict[str, set[int]](set)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        file = Path(frame.f_code.co_filename)
        if root not in file.parents:
            return None
        lines[str(file.relative_to(root))].add(frame.f_lineno)
        return trace

    catalog = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    served = {"name": "plain", "served_entities": [{"name": "echo", "model": "echo"}]}
    held = {"rate_limits": LIMITS, "guardrails": RULES}
    catalog.endpoints.put("plain", config={**served, "ai_gateway": held}, owner="admin")
    token = catalog.create_token("admin", kind="user", is_admin=True)[1]

    async def run() -> str:
        app, _ = gateway_in_process(catalog, tmp_path, endpoints=Endpoints(catalog))
        await ask(app, token)  # what is kept for some time is known then
        before = sys.gettrace(), threading.gettrace()
        sys.settrace(trace)
        threading.settrace(trace)
        try:
            return await ask(app, token)
        finally:
            sys.settrace(before[0])
            threading.settrace(before[1])  # type: ignore[arg-type]

    answer = asyncio.run(run())
    assert "<EMAIL_ADDRESS>" in answer and answer.endswith("data: [DONE]\n\n")
    ours = {file: len(found) for file, found in lines.items() if file not in ELSEWHERE}
    told = "\n".join(f"{count:4} {file}" for file, count in sorted(ours.items(), key=lambda one: -one[1]))
    print(f"{sum(ours.values())} lines ran, in {len(ours)} files:\n{told}")
    assert set(ours) <= STORY | set(PARTS), told
    assert set(ours) >= STORY and len(STORY) <= 8
    assert sum(ours.values()) < 900


async def ask(app: Any, token: str) -> str:
    """One request, as a server hands it to an ASGI application; the body that it answers."""
    messages = [{"role": "user", "content": "write to ann.example@posteo.de about it"}]
    body = json.dumps({"model": "plain", "messages": messages, "stream": True}).encode()
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    incoming = [{"type": "http.request", "body": body}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop() if incoming else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent).decode()
