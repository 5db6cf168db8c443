"""The Python reference as rows."""

import hashlib
import inspect
import pathlib
import platform

import pytest

from mosaic.data.pydoc import entries, entry_schema, module_names, read_modules
from mosaic.errors import BadRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


def test_names_are_public_and_harmless() -> None:
    names = module_names()
    assert set(names) >= {"os", "pathlib", "email.mime.text", "json.decoder"}
    assert names == sorted(set(names))
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
    for name in ("this", "antigravity", "idlelib", "test", "turtledemo.clock", "lib2to3.tests", "unittest.test"):
        assert name not in names
    assert "unittest.mock" in names


def test_names_of_another_package() -> None:
    assert "hypothesis.strategies" in module_names("hypothesis")
    with pytest.raises(BadRequest, match="'nowhere' is not installed"):
        module_names("nowhere")


def test_entries_are_the_modules_own() -> None:
    found = {entry["entry_id"]: entry for entry in entries("pathlib")}
    assert list(found) == list(dict.fromkeys(found))
    exists = found["pathlib.Path.exists"]
    assert exists["kind"] == "method"
    assert exists["signature"] == str(inspect.signature(pathlib.Path.exists))
    assert exists["text"] == inspect.cleandoc(pathlib.Path.exists.__doc__ or "")
    assert exists["sha256"] == hashlib.sha256(exists["text"].encode()).hexdigest()
    assert exists["source"] == f"python:{platform.python_version()}/pathlib#Path.exists"
    assert exists["summary"] and "\n" not in exists["summary"]
    assert found["pathlib.PurePath"]["kind"] == "class"
    assert found["pathlib.PurePath.name"]["kind"] == "property"
    assert not any("fnmatch" in name for name in found), "imported from elsewhere"
    assert {entry["module"] for entry in found.values()} == {"pathlib"}


def test_long_texts_are_cut_and_say_so() -> None:
    cut = [entry for entry in entries("argparse") if entry["truncated"]]
    assert cut and all(len(entry["text"]) == 2000 for entry in cut)


def test_modules_that_fail_become_rows(ray_cluster: None) -> None:
    names = ["json", "no_such_module_here", "pathlib", "asyncio.windows_events"]
    table = read_modules(names).to_pandas()
    bad = table[table.error.notna()].set_index("module").error.to_dict()
    assert set(bad) == {"no_such_module_here", "asyncio.windows_events"}
    assert "ModuleNotFoundError" in bad["no_such_module_here"]
    good = table[table.error.isna()]
    assert set(good.module) == {"json", "pathlib"}
    assert list(table.columns) == entry_schema().names
    with pytest.raises(BadRequest, match="at least one"):
        read_modules([])
