"""Custom models: MLflow's, asked in its scoring protocol, held against their signature, alone and in batches."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature

from mosaic.catalog.names import INTERNAL
from mosaic.errors import BadRequest, EngineFailed, Unavailable, Unprocessable
from mosaic.models.cache import digests
from mosaic.platform import Platform
from mosaic.protocol import EngineRequest
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.pyfunc import Pyfunc, together
from mosaic.serving.settings import EngineSettings

ROWS = pd.DataFrame({"name": ["ann", "bob"], "age": [3, 4]})


class Greeter(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers row by row; notes how many rows it was asked for at once."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        word = (params or {}).get("word", "hello")
        if (model_input["age"] < 0).any():
            raise RuntimeError("an age is below 0")
        return [f"{word} {name} of {len(model_input)}" for name in model_input["name"]]


def saved(folder: Path, model: Any, *, example: bool = True) -> Path:
    signature = infer_signature(ROWS, ["x"], params={"word": "hello"})
    more = {"input_example": ROWS} if example else {}
    mlflow.pyfunc.save_model(folder, python_model=model, signature=signature, pip_requirements=[], **more)
    return folder


@pytest.fixture(scope="module")
def greeter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("greeter") / "model", Greeter())


async def ask(model: Pyfunc, body: dict[str, Any]) -> Any:
    async for answer in model.answer(EngineRequest(request_id="r", task="predict", body=body)):
        return answer["predictions"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"name": "ann", "age": 3}]},
        {"dataframe_split": {"columns": ["name", "age"], "data": [["ann", 3]]}},
        {"inputs": {"name": ["ann"], "age": [3]}},
        {"instances": [{"name": "ann", "age": 3}]},
    ],
)
def test_every_way_to_ask(greeter: Path, body: dict[str, Any]) -> None:
    model = Pyfunc(str(greeter), "bot")
    assert asyncio.run(ask(model, body)) == ["hello ann of 1"]
    assert asyncio.run(ask(model, {**body, "params": {"word": "hi"}})) == ["hi ann of 1"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"dataframe_records": [{"name": "ann"}]}, "age"),
        ({"dataframe_records": [{"name": "ann", "age": "old"}]}, "age"),
        ({"dataframe_split": {"columns": ["name"], "data": [["ann"]]}}, "age"),
        ({"dataframe_split": 7}, "dataframe_split"),
        ({"inputs": {"name": ["a"], "age": [1]}, "instances": []}, "exactly one of"),
        ({"rows": []}, "exactly one of"),
        ({"dataframe_records": [{"name": "a", "age": 1}], "more": 1}, "exactly one of"),
    ],
)
def test_what_is_not_of_the_signature_is_refused(greeter: Path, body: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        asyncio.run(ask(Pyfunc(str(greeter), "bot"), body))


def test_what_breaks_inside_is_the_models_failure(greeter: Path) -> None:
    model = Pyfunc(str(greeter), "bot")
    with pytest.raises(EngineFailed, match="'bot' failed: RuntimeError: an age is below 0"):
        asyncio.run(ask(model, {"dataframe_records": [{"name": "a", "age": -1}]}))
    with pytest.raises(Unprocessable, match="predicts; it does not chat"):
        asyncio.run(anext(model.answer(EngineRequest(request_id="r", task="chat", body={}))))


def frames(*rows: dict[str, Any]) -> list[pd.DataFrame]:
    return [pd.DataFrame([row]) for row in rows]


def test_what_is_asked_together_is_answered_apart() -> None:
    asked: list[int] = []

    async def predict(table: pd.DataFrame) -> dict[str, Any]:
        asked.append(len(table))
        return {"predictions": table["name"].tolist()}

    tables = [pd.DataFrame({"name": [f"{n}-{row}" for row in range(n + 1)]}) for n in range(5)]
    answers = asyncio.run(together(tables, predict))
    assert answers == [{"predictions": one["name"].tolist()} for one in tables] and asked == [15]


def test_no_request_meets_what_is_another_one_s() -> None:
    async def predict(table: Any) -> dict[str, Any]:
        if not isinstance(table, pd.DataFrame):
            return {"predictions": table}
        if table.get("x") is not None and (table["x"] == 13).any():
            raise EngineFailed("thirteen")
        return {"predictions": [[type(one).__name__, one] for one in table.iloc[:, 0].tolist()]}

    rows = frames({"x": 9007199254740993}, {"y": 2}, {"x": 13}, {"x": 0.5}, {"x": True}, {"x": 1})
    answers = asyncio.run(together([*rows, ["a", "b"], [1]], predict))
    assert isinstance(answers[2], EngineFailed) and answers[2].message == "thirteen"
    assert [one["predictions"] for one in answers if isinstance(one, dict)] == [
        [["int", 9007199254740993]],
        [["int", 2]],
        [["float", 0.5]],
        [["bool", True]],
        [["int", 1]],
        ["a", "b"],
        [1],
    ]


def test_a_model_that_does_not_answer_row_by_row_is_asked_apart() -> None:
    async def count(table: pd.DataFrame) -> dict[str, Any]:
        return {"predictions": [f"{len(table)} rows"]}

    answers = asyncio.run(together(frames({"x": 1}, {"x": 2}), count))
    assert answers == [{"predictions": ["1 rows"]}] * 2


class Odd(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers what JSON has no word for."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return [float("nan"), float("inf"), 1.5] if model_input["age"][0] else {1, 2}


def test_what_json_has_no_word_for(tmp_path: Path) -> None:
    model = Pyfunc(str(saved(tmp_path / "model", Odd(), example=False)), "bot")
    assert asyncio.run(ask(model, {"dataframe_records": [{"name": "a", "age": 1}]})) == [None, None, 1.5]
    with pytest.raises(EngineFailed, match="'bot' answers what is no JSON"):
        asyncio.run(ask(model, {"dataframe_records": [{"name": "a", "age": 0}]}))


def test_a_probe_asks_for_the_models_own_example(greeter: Path, tmp_path: Path) -> None:
    assert asyncio.run(ask(Pyfunc(str(greeter), "bot"), {})) == []
    assert asyncio.run(ask(Pyfunc(str(saved(tmp_path / "plain", Greeter(), example=False)), "bot"), {})) == []


@pytest.fixture(scope="module")
def custom(platform: Platform, greeter: Path) -> Iterator[str]:
    """A registered model that runs code when it is loaded, which the platform may."""
    catalog = platform.catalog
    catalog.ensure_schema("main.custom")
    catalog.create_model("main.custom.greeter", owner="admin")
    catalog.create_model_version("main.custom.greeter", source=str(greeter), kind="mlflow", checksums=digests(greeter))
    catalog.set_alias("main.custom.greeter", "live", 1)
    yield "main.custom.greeter"


def test_on_the_platform(platform: Platform, token: str, custom: str) -> None:
    only = ServedEntity(name="greeter", model=f"{custom}@live", engine=EngineSettings(max_batch_size=8, num_cpus=0.1))
    settings = EndpointSettings(name="greeter", served_entities=[only])
    platform.serving.put(settings)
    with pytest.raises(Unavailable, match="has files that run code when they are loaded"):
        platform.serving.wait("greeter")
    for kind, name, privilege in (
        ("catalog", "main", "USE CATALOG"),
        ("schema", "main.custom", "USE SCHEMA"),
        ("model", custom, "EXECUTE UNSAFE"),
    ):
        platform.catalog.grants.grant(kind, name, INTERNAL, [privilege], by=platform.principal)
    platform.serving.put(settings)
    platform.serving.wait("greeter")

    def asked(body: object) -> httpx.Response:
        url = f"{platform.base_url}/serving-endpoints/greeter/invocations"
        return httpx.post(url, json=body, headers={"authorization": f"Bearer {token}"})

    try:
        answer = asked({"dataframe_records": [{"name": "ann", "age": 3}, {"name": "bob", "age": 4}]})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"predictions": ["hello ann of 2", "hello bob of 2"]}
        with ThreadPoolExecutor(24) as threads:
            found = list(threads.map(lambda n: asked({"dataframe_records": [{"name": f"n{n}", "age": n}]}), range(96)))
        words = [one.json()["predictions"][0].split() for one in found]
        assert [word[1] for word in words] == [f"n{n}" for n in range(96)]
        assert 1 < max(int(word[3]) for word in words) <= 8  # requests that were answered together
        deep: list[Any] = []
        for _ in range(600):
            deep = [deep]
        nested = asked({"inputs": deep})
        assert nested.status_code == 400 and "levels deep" in nested.json()["error"]["message"]
        wrong = asked({"dataframe_records": [{"name": "ann"}]})
        assert wrong.status_code == 400 and "age" in wrong.json()["error"]["message"]
        assert wrong.json()["error"]["param"] == "dataframe_records"
        assert asked({"messages": [{"role": "user", "content": "x"}]}).status_code == 422
        platform.flush_ledger()
        rows = platform.tables.to_arrow("system.serving.inference").to_pylist()
        (row,) = (one for one in rows if one["request_id"] == wrong.headers["x-request-id"])
        assert (row["status_code"], row["endpoint"]) == (400, "main.serving.greeter") and "age" in row["error"]
        (row,) = (one for one in rows if one["request_id"] == answer.headers["x-request-id"])
        assert (row["model"], row["model_version"], row["model_alias"]) == (custom, 1, "live")
        assert "hello ann" in row["response"] and "bob" in row["request"]
    finally:
        platform.serving.delete("greeter")
