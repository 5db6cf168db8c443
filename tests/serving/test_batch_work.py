"""A piece's limit in its actor, how conversations are written, and which flags an engine gets; no engine runs."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from transformers import AutoTokenizer

from mosaic.errors import BadRequest, Unavailable
from mosaic.serving.batch.engine import engine_flags, rendered, template_flags, try_template
from mosaic.serving.batch.pieces import PieceReader
from mosaic.serving.batch.pin import output_schema
from mosaic.serving.batch.prompts import Answer
from mosaic.serving.batch.settings import BatchSettings
from mosaic.serving.batch.work import PieceWorker
from mosaic.serving.plan import plan_engine
from mosaic.serving.settings import EngineSettings
from mosaic.storage import Storage


def settings(**more: Any) -> BatchSettings:
    asked = {"table": "main.test.rows", "model": "m", "prompt": "{text}", "output_table": "main.test.out"}
    return BatchSettings.parse({**asked, **more})


class Held:
    """Answers a piece when it is told to."""

    def __init__(self) -> None:
        self.begun, self.told = {"a": asyncio.Event(), "b": asyncio.Event()}, {"a": asyncio.Event()}

    def asker(self, settings: BatchSettings) -> "Held":
        return self

    async def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
        (row,) = rows
        self.begun[row["text"]].set()
        await self.told.get(row["text"], asyncio.Event()).wait()
        return [Answer(response=row["text"])]


def test_a_piece_has_its_time_from_the_last_that_was_finished_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "root" / "rows"
    place.mkdir(parents=True)
    write_deltalake(str(place), pa.table({"text": ["a", "b"]}))
    delta = DeltaTable(str(place))
    asked = settings(stall_seconds=0.05)
    schema, keep = output_schema(asked, pa.schema([("text", pa.string())]), "chat")
    reader = PieceReader(Storage(str(tmp_path / "root")), str(place), delta, ["text"], None)
    clock = [0.0]

    async def run() -> None:
        held = Held()
        worker = PieceWorker(held, asked, reader, keep, schema, lambda: clock[0])
        pieces = [pa.table({"number": [n], "start": [n - 1], "stop": [n]}) for n in (1, 2)]
        first, second = (asyncio.ensure_future(worker(piece)) for piece in pieces)
        for begun in held.begun.values():
            await begun.wait()
        clock[0] = 0.04
        held.told["a"].set()
        assert (await first)["number"].to_pylist() == [1]
        clock[0] = 0.08
        await asyncio.sleep(0.2)
        assert not second.done()
        clock[0] = 0.1
        with pytest.raises(Unavailable, match=r"did not finish piece 2 \(rows 1 to 2\) within stall_seconds = 0\.05"):
            await second

    asyncio.run(run())


def test_an_engine_gets_none_of_the_servers_flags(tiny_chat: Path) -> None:
    engine = EngineSettings(
        tool_call_parser="hermes", engine_kwargs={"seed": 3, "default_chat_template_kwargs": {"think": False}}
    )
    kwargs = plan_engine(engine, tiny_chat, []).engine_kwargs
    assert {"tool_call_parser", "enable_auto_tool_choice", "default_chat_template_kwargs"} <= set(kwargs)
    assert set(kwargs) - set(engine_flags(kwargs)) == {
        "tool_call_parser",
        "enable_auto_tool_choice",
        "default_chat_template_kwargs",
    }
    assert template_flags(kwargs) == {"think": False}


def test_a_template_that_refuses_the_conversation_is_the_jobs_fault(tiny_chat: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    tokenizer.chat_template = (
        "{% for one in messages %}{% if one.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ one.content }}{% endfor %}{{ mark }}"
    )
    try_template(tokenizer, settings(), {})
    assert rendered(tokenizer, [{"role": "user", "content": "hello"}], {"mark": "!"}) == "hello!"
    with pytest.raises(BadRequest, match=r"system_prompt: the model's chat template refuses .*no system here") as told:
        try_template(tokenizer, settings(system_prompt="Be brief."), {})
    assert told.value.param == "system_prompt"
