"""Tokens that open some surfaces only."""

import pytest

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, PermissionDenied, Unauthenticated
from mosaic.runtime.asgi import SCOPES, require_scope
from tests.catalog.conftest import Unity


def test_a_token_says_what_it_is_for(catalog: Catalog) -> None:
    token, secret = catalog.create_token("ann", scopes=["sql", "unity-catalog"])
    assert token.scopes == ("unity-catalog", "sql") == catalog.check_token(secret).scopes
    assert catalog.list_tokens()[0].scopes == token.scopes
    assert catalog.create_token("ann")[0].scopes == ("all-apis",)
    assert catalog.audit.newest(2)[0].request_params["scopes"] == "unity-catalog, sql"
    for scopes, told in ((["sequel"], r"scope 'sequel' does not exist; there are \['all-apis'"), ([], "needs a scope")):
        with pytest.raises(BadRequest, match=told):
            catalog.create_token("ann", scopes=scopes)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/chat/completions", "model-serving"),
        ("/serving-endpoints/a/invocations", "model-serving"),
        ("/api/2.1/unity-catalog/tables", "unity-catalog"),
        ("/api/2.0/unity-catalog/temporary-table-credentials", "unity-catalog"),
        ("/api/2.0/vector-search/indexes/i/query", "vector-search"),
        ("/api/2.0/sql/statements", "sql"),
        ("/api/2.0/mlflow/runs/create", "mlflow"),
        ("/api/2.0/mosaic/status", "platform"),
        ("/api/2.0/sqlish", "all-apis"),
        ("/internal/v1/embeddings", "all-apis"),
        ("/v1", "model-serving"),
        ("/", "all-apis"),
    ],
)
def test_each_path_needs_its_scope(catalog: Catalog, path: str, scope: str) -> None:
    for held in SCOPES:
        principal = catalog.check_token(catalog.create_token("ann", scopes=[held])[1])
        if held in (scope, "all-apis"):
            require_scope(principal, path)
        else:
            with pytest.raises(PermissionDenied, match=f"has the scopes .*; '{path}' needs '{scope}'"):
                require_scope(principal, path)


def test_over_http(unity: Unity, catalog: Catalog) -> None:
    reading = catalog.create_token("ann", is_admin=True, scopes=["sql"])[1]
    refused = unity("GET", "/catalogs", token=reading)
    assert refused.status_code == 403 and "needs 'unity-catalog'" in refused.json()["message"]
    denied = catalog.audit.newest(1)[0]
    assert (denied.action_name, denied.response.status_code, denied.user_identity.email) == ("useToken", 403, "ann")
    assert denied.request_params == {"path": "/api/2.1/unity-catalog/catalogs"}
    allowed = catalog.create_token("ann", is_admin=True, scopes=["unity-catalog"])[1]
    assert unity("GET", "/catalogs", token=allowed).status_code == 200


def test_a_companys_token_has_no_issuer_here(catalog: Catalog) -> None:
    with pytest.raises(Unauthenticated, match="looks like a JWT, and no issuer is set up here"):
        catalog.check_token("eyJhbGciOi.eyJzdWIi.c2ln")
