"""The files behind an ingestion: listed once each, with the checksum that the files really have."""

import hashlib
import json
import os.path
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.manifest import digest, note_source
from mosaic.data.pydoc import entries, module_names, source_files
from mosaic.errors import BadRequest
from mosaic.storage import Storage

SOURCE = f"python:{platform.python_version()}"


def test_every_module_has_its_file_and_nothing_is_imported() -> None:
    listed = {row["uri"]: row for row in source_files(module_names()).to_pylist()}
    assert set(listed) == {f"{SOURCE}/{name}" for name in module_names()}
    decoder = listed[f"{SOURCE}/json.decoder"]
    assert decoder["sha256"] == hashlib.sha256(Path(json.decoder.__file__).read_bytes()).hexdigest()
    assert decoder["file"] == "json/decoder.py" and decoder["bytes"] == os.path.getsize(json.decoder.__file__)
    assert listed[f"{SOURCE}/os"]["file"] == "os.py", "frozen, and still a file"
    assert listed[f"{SOURCE}/sys"]["bytes"] > 0, "built in: the interpreter's own file"
    assert {entry["source"].partition("#")[0] for entry in entries("json")} == {f"{SOURCE}/json"}
    shown = (
        "import sys; from mosaic.data.pydoc import source_files; source_files(['xml.dom.minidom', 'no.such.module'])"
    )
    done = subprocess.check_output(
        [sys.executable, "-c", f"{shown}; print('xml.dom.minidom' in sys.modules)"], text=True
    )
    assert done.strip() == "False" and source_files(["no.such.module", "json"]).num_rows == 1


def test_a_source_is_one_edge_with_its_manifest(tmp_path: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.ensure_schema("main.test")
    tables = Tables(Storage(str(tmp_path / "root")), catalog)
    files = source_files(["json", "json.decoder", "os"])
    for number in (1, 2):
        run_id = catalog.start_run("ingest", "main.test.rows", principal="ann")
        version = note_source(tables, catalog, run_id, SOURCE, files, manifest="main.test.files", owner="ann")
        (source,) = catalog.get_run(run_id).inputs
        manifest = f"main.test.files@{number}"
        assert source.detail == {"documents": 3, "sha256": digest(files), "manifest": manifest} and version == number
        assert [(made.name, made.version) for made in catalog.get_run(run_id).outputs] == [("main.test.files", number)]
        assert tables.to_arrow("main.test.files").equals(files.sort_by("uri"))
    with pytest.raises(BadRequest, match="is listed twice"):
        twice = source_files(["json", "json"])
        note_source(tables, catalog, run_id, SOURCE, twice, manifest="main.test.files", owner="ann")
    catalog.close()


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    files = source_files(["json", "os"])
    lines = subprocess.check_output(
        [str(shutil.which("sha256sum")), str(Path(json.__file__)), str(Path(os.__file__))], text=True
    )
    for module, path in (("json", json.__file__), ("os", os.__file__)):
        lines = lines.replace(str(path), f"{SOURCE}/{module}")
    assert digest(files) == hashlib.sha256(lines.encode()).hexdigest()
