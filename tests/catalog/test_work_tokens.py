"""The tokens of a piece of work: no more than its caller's, and none left when it was killed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.work_tokens import revoke_left, work_token
from mosaic.errors import PermissionDenied, Unauthenticated
from mosaic.protocol import Principal

WEEK = timedelta(days=7)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")


def came_with(catalog: Catalog, scope: str, ends: datetime | None = None) -> Principal:
    return catalog.check_token(catalog.create_token("bea", scopes=[scope], expires_at=ends)[1])


def test_it_opens_endpoints_only_and_ends_with_the_work(catalog: Catalog) -> None:
    bea = came_with(catalog, "all-apis")
    with work_token(catalog, bea, comment="w", lasts=WEEK, action="a") as secret:
        found = catalog.check_token(secret)
        assert (found.name, found.scopes) == ("bea", ("model-serving",)) and found.token_id is not None
        ends = catalog.get_token(found.token_id).expires_at
        assert ends is not None and ends <= datetime.now(UTC) + WEEK
    with pytest.raises(Unauthenticated, match="revoked"):
        catalog.check_token(secret)


def test_it_ends_with_the_callers_own_token(catalog: Catalog) -> None:
    bea = came_with(catalog, "model-serving", datetime.now(UTC) + timedelta(hours=1))
    with work_token(catalog, bea, comment="w", lasts=WEEK, action="a") as secret:
        made, own = catalog.check_token(secret).token_id, bea.token_id
        assert made is not None and own is not None
        assert catalog.get_token(made).expires_at == catalog.get_token(own).expires_at


def test_a_token_without_the_scope_makes_none(catalog: Catalog) -> None:
    bea = came_with(catalog, "sql")
    with (
        pytest.raises(PermissionDenied, match=r"needs a token with the scope 'model-serving'.*\['sql'\]") as told,
        work_token(catalog, bea, comment="w", lasts=WEEK, action="a"),
    ):
        raise AssertionError("it was made")
    assert told.value.code == "insufficient_scope"
    assert len(catalog.list_tokens()) == 1


def test_what_a_kill_left_is_revoked_by_its_user_alone(catalog: Catalog) -> None:
    bea, ann = Principal(name="bea"), Principal(name="ann")
    left = [catalog.create_token(name, comment=comment)[0].id for name, comment in (("bea", "w"), ("bea", "v"))]
    revoke_left(catalog, ann, comment="w")
    revoke_left(catalog, bea, comment="w", silent=timedelta(hours=1))
    assert not any(catalog.get_token(one).revoked_at for one in left)
    revoke_left(catalog, bea, comment="w")
    assert [catalog.get_token(one).revoked_at is not None for one in left] == [True, False]
