"""A registered model that runs code when it is loaded: only with a grant, and the refusal says with which command."""

from pathlib import Path

import pytest

from mosaic.catalog.files import RULE, pickles_of
from mosaic.catalog.names import INTERNAL
from mosaic.errors import PermissionDenied
from mosaic.models.cache import digests
from mosaic.platform import PlatformSettings
from mosaic.platform.parts import Parts, build_parts
from tests.models.test_resolve import model_folder


def registered(parts: Parts, folder: Path, *, name: str = "main.ml.bot", checked: bool = True) -> str:
    if parts.catalog.find_model(name) is None:
        parts.catalog.ensure_schema("main.ml")
        parts.catalog.create_model(name, owner="ann")
    checksums = digests(folder) if checked else {}
    return parts.catalog.create_model_version(name, source=str(folder), kind="full", checksums=checksums).full_name


def test_loading_pickles_needs_a_grant(tmp_path: Path) -> None:
    parts = build_parts(PlatformSettings(storage=str(tmp_path / "root")))
    catalog, models = parts.catalog, parts.models
    safe = model_folder(tmp_path / "safe")
    assert models.resolve(registered(parts, safe)) == safe  # as training registers them: no grant needed
    unsafe = model_folder(tmp_path / "unsafe")
    (unsafe / "pytorch_model.bin").write_bytes(b"x")
    name = registered(parts, unsafe)
    catalog.create_token(INTERNAL, kind="service")
    with pytest.raises(PermissionDenied) as refused:
        models.resolve(name)
    assert "'main.ml.bot/2' has files that run code when they are loaded: ['pytorch_model.bin']" in str(refused.value)
    commands = str(refused.value).partition("to allow that: ")[2].split("; ")
    assert commands == [
        'mosaic grants add mosaic-internal "USE CATALOG" catalog main',
        'mosaic grants add mosaic-internal "USE SCHEMA" schema main.ml',
        'mosaic grants add mosaic-internal "EXECUTE UNSAFE" model main.ml.bot',
    ]
    (denied,) = catalog.audit.newest(1)
    assert (denied.action_name, denied.user_identity.email) == ("loadModelVersion", INTERNAL)
    # ALL PRIVILEGES is not enough; what the message says is.
    ann = catalog.check_token(catalog.create_token("ann", is_admin=True)[1])
    catalog.grants.grant("catalog", "main", INTERNAL, ["ALL PRIVILEGES"], by=ann)
    with pytest.raises(PermissionDenied, match=r'that: mosaic grants add \S+ "EXECUTE UNSAFE" model main\.ml\.bot$'):
        models.resolve(name)
    catalog.grants.grant("model", "main.ml.bot", INTERNAL, ["EXECUTE UNSAFE"], by=ann)
    assert models.resolve(name) == unsafe
    catalog.grants.revoke("model", "main.ml.bot", INTERNAL, ["EXECUTE UNSAFE"], by=ann)
    with pytest.raises(PermissionDenied):
        models.resolve("main.ml.bot/2")
    catalog.close()


def test_a_pickle_that_comes_later_is_found(tmp_path: Path) -> None:
    """Without checksums nothing says that the files are those of the registration, so they are looked at again."""
    parts = build_parts(PlatformSettings(storage=str(tmp_path / "root")))
    folder = model_folder(tmp_path / "model")
    name = registered(parts, folder, checked=False)
    assert parts.models.resolve(name) == folder
    (folder / "late.pkl").write_bytes(b"x")
    with pytest.raises(PermissionDenied, match=r"late\.pkl"):
        parts.models.resolve(name)
    kept = parts.catalog.get_model_version(name).model_copy(update={"spec": {"pickles": [], "pickles_rule": RULE}})
    assert pickles_of(parts.storage, kept) == ("late.pkl",)
    assert pickles_of(parts.storage, kept.model_copy(update={"checksums": {"a": "0" * 64}})) == ()
    older = kept.model_copy(update={"checksums": {"a": "0" * 64}, "spec": {"pickles": []}})
    assert pickles_of(parts.storage, older) == ("late.pkl",)  # found by a rule that knew less
    parts.catalog.close()
