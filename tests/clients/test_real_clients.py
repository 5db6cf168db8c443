"""Clients that nobody here wrote, in an environment of their own: each call does what docs/clients.md says."""

import difflib
from pathlib import Path

import pytest

from tests.clients.report import CLIENTS, PAGE, Found, ask_all, page


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What every client found, asked once."""
    return ask_all(tmp_path_factory.mktemp("clients"))


@pytest.mark.parametrize("client", CLIENTS)
def test_every_call_does_what_it_should(found: dict[str, Found], client: str) -> None:
    assert found[client].calls and not found[client].failed, "\n".join(found[client].failed)


def test_the_page_says_what_was_found(found: dict[str, Found]) -> None:
    written, now = PAGE.read_text(encoding="utf-8").splitlines(), page(found).splitlines()
    differences = "\n".join(difflib.unified_diff(written, now, "docs/clients.md", "found", lineterm="", n=0))
    assert not differences, f"python -m tests.clients.report > docs/clients.md makes it anew:\n{differences}"


def test_a_client_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.clients.report.PYTHON", tmp_path / "python")
    with pytest.raises(FileNotFoundError, match="`make clients` makes it"):
        ask_all(tmp_path)
