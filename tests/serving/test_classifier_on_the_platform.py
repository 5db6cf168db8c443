"""A folder of transformers becomes a version and an endpoint that predicts, asked through the gateway."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from transformers import pipeline

from mosaic.errors import BadRequest, PermissionDenied
from mosaic.models.cache import digests
from mosaic.models.doubles import tiny_classifier
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.settings import EngineSettings

MODEL = "main.moods.tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("tiny") / "classifier")


@pytest.fixture(scope="module")
def moods(platform: Platform, folder: Path) -> Iterator[str]:
    """The endpoint; nothing in what makes it names the task."""
    made = platform.models.register(MODEL, folder, alias="live")
    assert (made.kind, made.checksums) == ("classifier", digests(folder))
    engine = EngineSettings(num_cpus=0.1, threads=1)
    entity = ServedEntity(name="tiny", model=f"{MODEL}@live", engine=engine)
    platform.serving.put(EndpointSettings(name="moods", served_entities=[entity]))
    platform.serving.wait("moods")
    yield "moods"
    platform.serving.delete("moods")


def test_it_answers_as_transformers_does(platform: Platform, token: str, folder: Path, moods: str) -> None:
    url, headers = f"{platform.base_url}/serving-endpoints/{moods}/invocations", {"authorization": f"Bearer {token}"}
    offline = pipeline("text-classification", model=str(folder), top_k=None)
    texts = [f"{word} number {n}" for n in range(12) for word in ("good", "so-so, really", "bad")]

    def asked(text: str) -> dict[str, object]:
        answer = httpx.post(url, json={"inputs": [text]}, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["predictions"]
        return dict(found)

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(asked, texts))
    for one, expected in zip(found, offline(texts), strict=True):
        assert one["label"] == expected[0]["label"]
        assert one["scores"] == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)
    table = {"dataframe_records": [{"text": text} for text in texts]}
    together = httpx.post(url, json=table, headers=headers, timeout=60).json()["predictions"]
    assert [one["label"] for one in together] == [one["label"] for one in found]
    wrong = httpx.post(url, json={"dataframe_records": [{"txt": "good"}]}, headers=headers)
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "dataframe_records"
    assert "'txt'" in wrong.json()["error"]["message"]
    long = httpx.post(url, json={"inputs": ["good", "x" * 500]}, headers=headers)
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
    chat = httpx.post(url, json={"messages": [{"role": "user", "content": "x"}]}, headers=headers)
    assert chat.status_code == 422


def test_registering_takes_grants_and_a_model(platform: Platform, folder: Path, tmp_path: Path) -> None:
    platform.models.register(MODEL, folder)
    nina = platform.acting(platform.catalog.check_token(platform.catalog.create_token("nina", is_admin=False)[1]))
    for name in (MODEL, "main.moods.other"):
        with pytest.raises(PermissionDenied):
            nina.models.register(name, folder)
    assert platform.catalog.find_model("main.moods.other") is None
    for kind, name, privilege in (
        ("catalog", "main", "USE CATALOG"),
        ("schema", "main.moods", "USE SCHEMA"),
        ("schema", "main.moods", "CREATE MODEL"),
    ):
        platform.catalog.grants.grant(kind, name, "nina", [privilege], by=platform.principal)
    made = nina.models.register("main.moods.other", folder, alias="mine")
    assert (made.full_name, made.created_by) == ("main.moods.other/1", "nina")
    assert nina.models.register("main.moods.other", folder).version == 2  # hers now
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadRequest, match=r"has none of config\.json .* there is \['notes.txt'\]"):
        platform.models.register(MODEL, tmp_path)
    with pytest.raises(BadRequest, match="there is no folder"):
        platform.models.register(MODEL, tmp_path / "missing")
    with pytest.raises(BadRequest, match="base_model is for adapters"):
        platform.models.register(MODEL, folder, base_model="smollm2-135m-instruct")
