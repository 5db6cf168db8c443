"""Who may run which model in a job, also when an output table's plan says that another answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, Conflict, PermissionDenied
from mosaic.protocol import Principal
from mosaic.serving.batch.pin import pin_endpoint, pin_model, require_chat_model
from mosaic.serving.batch.settings import BatchSettings
from mosaic.serving.settings import EngineSettings

BEA, ADMIN = Principal(name="bea"), Principal(name="admin", is_admin=True)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """`open` is for bea and `closed` is not; `open` has two versions, and `adapter` a folder for its base."""
    made = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    made.ensure_schema("main.test")
    made.create_token("bea")
    for name, base in (("open", None), ("closed", None), ("adapter", "/srv/base")):
        made.create_model(f"main.test.{name}", owner="admin")
        kind = "model" if base is None else "adapter"
        for _ in range(2):
            made.create_model_version(f"main.test.{name}", source="/tmp/x", kind=kind, base_model=base)
        made.set_alias(f"main.test.{name}", "champion", 2)
    for name in ("open", "adapter"):
        made.grants.grant("model", f"main.test.{name}", "bea", ["EXECUTE"], by=ADMIN)
    made.grants.grant("catalog", "main", "bea", ["USE CATALOG", "USE SCHEMA"], by=ADMIN)
    return made


def asked(model: str | None, **more: Any) -> BatchSettings:
    values = {"table": "main.test.rows", "model": model, "prompt": "{text}", "output_table": "main.test.out"}
    return BatchSettings.parse({**values, **more})


@pytest.mark.parametrize(
    ("model", "pinned"),
    [
        ("main.test.open@champion", "main.test.closed/1"),
        ("main.test.open@champion", "/srv/secret"),
        ("main.test.open@champion", "main.test.open@champion"),
        ("main.test.open/1", "main.test.open/2"),
        ("smollm2-135m-instruct", "main.test.closed/1"),
        ("smollm2-135m-instruct", "/srv/secret"),
        ("smollm2-135m-instruct", "another"),
    ],
)
def test_a_plan_cannot_name_another_model(catalog: Catalog, model: str, pinned: str) -> None:
    with pytest.raises(Conflict, match=r"which is not what model .* can mean") as told:
        pin_model(catalog, asked(model), BEA, pinned)
    assert told.value.code == "batch_differs"


def test_a_plan_keeps_the_version_that_an_alias_meant(catalog: Catalog) -> None:
    assert pin_model(catalog, asked("main.test.open@champion"), BEA, None).name == "main.test.open/2"
    assert pin_model(catalog, asked("main.test.open@champion"), BEA, "main.test.open/1").name == "main.test.open/1"
    assert pin_model(catalog, asked("Main.Test.open/1"), BEA, "main.test.open/1").name == "main.test.open/1"
    assert pin_model(catalog, asked("plain"), BEA, "plain").name == "plain"
    with pytest.raises(PermissionDenied, match="EXECUTE"):
        pin_model(catalog, asked("main.test.closed@champion"), BEA, None)


def test_only_administrators_run_an_adapter_of_a_place(catalog: Catalog) -> None:
    with pytest.raises(PermissionDenied, match="is an adapter of '/srv/base', a place"):
        pin_model(catalog, asked("main.test.adapter/1"), BEA, None)
    assert pin_model(catalog, asked("main.test.adapter/1"), ADMIN, None).engine_model == "/srv/base"


def test_a_token_that_opens_no_endpoints_starts_no_job_that_asks_one(catalog: Catalog) -> None:
    narrow = BEA.model_copy(update={"scopes": ("sql",)})
    with pytest.raises(PermissionDenied, match="the scope 'model-serving'"):
        pin_endpoint(catalog, asked(None, endpoint="echo"), narrow)


def test_the_jobs_own_settings_say_how_a_model_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    require_chat_model(lambda _: tmp_path, "m", EngineSettings())
    with pytest.raises(BadRequest, match="a job itself runs causal language models"):
        require_chat_model(lambda _: tmp_path, "m", EngineSettings(runner="pooling"))
