"""Python classes as models: copied by value, held against their columns, and run only by leave."""

import asyncio
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mosaic.catalog.names import INTERNAL
from mosaic.errors import BadRequest, EngineFailed, PermissionDenied, Unavailable, Unprocessable
from mosaic.platform import Platform
from mosaic.protocol import EngineRequest
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.packages import installed
from mosaic.serving.python_model import PythonModel, write_model
from mosaic.serving.settings import EngineSettings

COLUMNS = {"name": "string", "age": "long"}


class Shout:
    """Answers row by row, with the word of its file; notes how many rows it was asked for at once."""

    word = "hello"

    def load(self, folder: Path) -> None:
        if (folder / "word.txt").exists():
            self.word = (folder / "word.txt").read_text()

    def predict(self, rows: list[dict[str, Any]]) -> list[str]:
        if any(row["age"] < 0 for row in rows):
            raise RuntimeError("an age is below 0")
        return [f"{self.word} {row['name'].upper()} of {len(rows)}" for row in rows]


class Odd:
    """Answers what it should not."""

    def predict(self, rows: list[dict[str, Any]]) -> Any:
        return {
            "numpy": np.asarray([1.5, np.nan]),
            "few": ["one"],
            "none": None,
            "object": [object()] * 2,
        }[rows[0]["name"]]


@pytest.fixture(scope="module")
def shout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shout")
    (place / "given").mkdir()
    (place / "given" / "word.txt").write_text("hey")
    write_model(Shout, place / "model", columns=COLUMNS, example=[{"name": "ann", "age": 3}], files=place / "given")
    return place / "model"


async def ask(model: PythonModel, body: dict[str, Any]) -> Any:
    async for answer in model.answer(EngineRequest(request_id="r", task="predict", body=body)):
        return answer["predictions"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"name": "ann", "age": 3}]},
        {"dataframe_split": {"columns": ["name", "age"], "data": [["ann", 3]]}},
        {"inputs": {"name": ["ann"], "age": [3]}},
        {"instances": [{"name": "ann", "age": 3}]},
        {},
    ],
)
def test_every_way_to_ask(shout: Path, body: dict[str, Any]) -> None:
    assert asyncio.run(ask(PythonModel(str(shout), "bot"), body)) == ["hey ANN of 1"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"name": "ann"}, r"dataframe_records\[1\] must have the columns \['age', 'name'\]; it has \['name'\]"),
        ({"name": "ann", "age": 3, "more": 1}, r"it has \['age', 'more', 'name'\]"),
        ({"name": "ann", "age": "3"}, r"dataframe_records\[1\].age must be a long, not '3'"),
        ({"name": "ann", "age": True}, "age must be a long, not 'True'"),
        ({"name": "ann", "age": 2**63}, "age must be a long"),
        ({"name": None, "age": 3}, "name must be a string, not 'None'"),
        (["ann", 3], "it has list"),
    ],
)
def test_what_has_other_columns_is_refused(shout: Path, row: Any, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        asyncio.run(ask(PythonModel(str(shout), "bot"), {"dataframe_records": [{"name": "a", "age": 1}, row]}))


def test_it_takes_no_params_and_no_chat(shout: Path) -> None:
    model = PythonModel(str(shout), "bot")
    with pytest.raises(BadRequest, match="takes no params"):
        asyncio.run(ask(model, {"dataframe_records": [{"name": "a", "age": 1}], "params": {"word": "hi"}}))
    with pytest.raises(Unprocessable, match="predicts; it does not chat"):
        asyncio.run(anext(model.answer(EngineRequest(request_id="r", task="chat", body={}))))


def test_requests_go_together_and_no_one_meets_another_s_error(shout: Path) -> None:
    async def many(size: int) -> list[Any]:
        model = PythonModel(str(shout), "bot", max_batch_size=size)
        bodies = [{"inputs": [{"name": f"n{age}", "age": age}]} for age in (0, 1, 2, -1, 4)]
        return await asyncio.gather(*(ask(model, body) for body in bodies), return_exceptions=True)

    together = asyncio.run(many(3))
    assert together[:3] == [["hey N0 of 3"], ["hey N1 of 3"], ["hey N2 of 3"]] and together[4] == ["hey N4 of 1"]
    assert isinstance(together[3], EngineFailed) and "RuntimeError: an age is below 0" in together[3].message
    assert asyncio.run(many(1))[:3] == [[f"hey N{age} of 1"] for age in range(3)]


def test_what_it_answers_is_one_answer_for_each_row_in_json(tmp_path: Path) -> None:
    write_model(Odd, tmp_path / "model", columns={"name": "string"})
    model = PythonModel(str(tmp_path / "model"), "bot")
    assert asyncio.run(ask(model, {"inputs": ["numpy", "x"]})) == [1.5, None]
    for name, told in (("few", "2 rows: 1 of them"), ("none", "2 rows: NoneType"), ("object", "what is no JSON")):
        with pytest.raises(EngineFailed, match=told):
            asyncio.run(ask(model, {"inputs": [name, "x"]}))


def test_what_cannot_be_a_model_is_refused_where_it_is_registered(tmp_path: Path) -> None:
    module = tmp_path / "bots.py"

    def refused(text: str, told: str, **given: Any) -> None:
        module.write_text(text)
        with pytest.raises(BadRequest, match=told):
            write_model(f"{module}:Bot", tmp_path / "never", **{"columns": {"x": "long"}, **given})

    good = "class Bot:\n    def predict(self, rows):\n        return rows\n"
    refused("import a_neighbour\n" + good, "cannot be loaded on its own: ModuleNotFoundError: No module named 'a_neigh")
    (tmp_path / "never").rename(tmp_path / "first")
    refused("class Bot:\n    pass\n", r"no class 'Bot' with a method predict\(self, rows\)")
    (tmp_path / "never").rename(tmp_path / "second")
    refused(good, "columns", columns={})
    refused(good, "columns", columns={"x": "int8"})
    refused(good, r"example\[0\].x must be a long, not 'one'", example=[{"x": "one"}])
    with pytest.raises(BadRequest, match="no file"):
        write_model(f"{tmp_path}/none.py:Bot", tmp_path / "never", columns={"x": "long"})

    class Inner:
        def predict(self, rows: list[Any]) -> list[Any]:
            return rows

    with pytest.raises(BadRequest, match="must stand at the top of a module"):
        write_model(Inner, tmp_path / "never", columns={"x": "long"})
    described = json.loads((tmp_path / "first" / "mosaic-model.json").read_text())
    assert described == {"format": 1, "class_name": "Bot", "columns": {"x": "long"}, "example": []}


def wheel(folder: Path, version: str, module: str) -> Path:
    """A package that is nowhere else, of one module, as pip takes it."""
    file, info = folder / f"mosaic_tiny-{version}-py3-none-any.whl", f"mosaic_tiny-{version}.dist-info"
    parts = {
        "mosaic_tiny.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: mosaic-tiny\nVersion: {version}\nRequires-Dist: numpy\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    parts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*parts, f"{info}/RECORD"])
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file


def test_packages_of_its_own_are_installed_beside_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = installed([str(wheel(tmp_path / "a", "1.0", "WORD = 'first'"))], tmp_path / "place")
    assert sorted(path.name for path in first.iterdir()) == [
        "manifest.json",
        "mosaic_tiny-1.0.dist-info",
        "mosaic_tiny.py",
    ]  # numpy, which it requires, is there already
    made = (first / "manifest.json").stat().st_mtime_ns
    assert installed([str(tmp_path / "a" / "mosaic_tiny-1.0-py3-none-any.whl")], tmp_path / "place") == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    wheel(tmp_path / "a", "1.0", "WORD = 'second'")  # the same name, another content
    second = installed([str(tmp_path / "a" / "mosaic_tiny-1.0-py3-none-any.whl")], tmp_path / "place")
    assert second != first and "second" in (second / "mosaic_tiny.py").read_text()
    with pytest.raises(EngineFailed, match=r"engine\.pip = \['mosaic-tiny==9'\] cannot be installed: .*mosaic-tiny==9"):
        installed(["mosaic-tiny==9"], tmp_path / "place")


@pytest.mark.parametrize("one", ["--index-url=http://x", " -r file", "", "a\nb"])
def test_an_option_of_pip_is_no_requirement(one: str) -> None:
    with pytest.raises(ValueError, match="must be a requirement such as"):
        EngineSettings(pip=[one])


def with_pip(settings: EndpointSettings, requirement: str) -> EndpointSettings:
    (entity,) = settings.served_entities
    engine = EngineSettings(num_cpus=0.1, pip=[requirement])
    return settings.model_copy(update={"served_entities": [entity.model_copy(update={"engine": engine})]})


def _as(platform: Platform, name: str) -> Platform:
    principal = platform.catalog.check_token(platform.catalog.create_token(name, is_admin=False)[1])
    platform.catalog.grants.grant("catalog", "main", name, ["ALL PRIVILEGES", "MANAGE"], by=platform.principal)
    return platform.acting(principal)


def test_on_the_platform(platform: Platform, token: str, tmp_path: Path) -> None:
    made = platform.models.register("main.classes.shout", Shout, columns=COLUMNS, example=[{"name": "a", "age": 1}])
    assert made.kind == "python" and made.spec["pickles"] == ["model.py"]
    engine = EngineSettings(max_batch_size=8, num_cpus=0.1)
    settings = EndpointSettings(
        name="shout", served_entities=[ServedEntity(name="shout", model=made.full_name, engine=engine)]
    )
    platform.serving.put(settings)
    try:
        with pytest.raises(Unavailable, match=r"has files that run code when they are loaded: \['model.py'\]"):
            platform.serving.wait("shout")
        for kind, name, privilege in (
            ("catalog", "main", "USE CATALOG"),
            ("schema", "main.classes", "USE SCHEMA"),
            ("model", made.model, "EXECUTE UNSAFE"),
        ):
            platform.catalog.grants.grant(kind, name, INTERNAL, [privilege], by=platform.principal)
        platform.serving.put(settings)
        platform.serving.wait("shout")
        url, headers = f"{platform.base_url}/serving-endpoints/shout/invocations", {"authorization": f"Bearer {token}"}
        answer = httpx.post(url, json={"dataframe_records": [{"name": "ann", "age": 3}]}, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"predictions": ["hello ANN of 1"]})
        wrong = httpx.post(url, json={"dataframe_records": [{"name": "ann", "age": "old"}]}, headers=headers)
        assert wrong.status_code == 400 and ".age must be a long" in wrong.json()["error"]["message"]
        failed = httpx.post(url, json={"dataframe_records": [{"name": "ann", "age": -3}]}, headers=headers)
        assert failed.status_code == 502 and "an age is below 0" in failed.json()["error"]["message"]
        with pytest.raises(PermissionDenied, match=r"engine\.pip installs code"):
            _as(platform, "eve").serving.update(with_pip(settings, "tiny"))
        platform.serving.put(with_pip(settings, "no-such-package-as-this==1.2.3.4"))
        with pytest.raises(Unavailable, match=r"engine\.pip = \['no-such-package-as-this==1.2.3.4'\] cannot be inst"):
            platform.serving.wait("shout")
        answer = httpx.post(url, json={"dataframe_records": [{"name": "ann", "age": 3}]}, headers=headers)
        assert answer.status_code == 200  # the configuration before serves on
    finally:
        platform.serving.delete("shout")
