"""deltalake's own `uc://` addresses, which need credentials of an object store even for a table on local disk."""

import os

from deltalake import DeltaTable

from tests.clients.calls import Calls

calls = Calls("deltalake")
os.environ |= {
    "DATABRICKS_HOST": calls.offered.address,
    "DATABRICKS_TOKEN": calls.offered.token,
    "UNITY_ALLOW_HTTP_URL": "true",
}
calls.not_offered(
    "DeltaTable('uc://main.docs.people') on local disk", lambda: DeltaTable("uc://main.docs.people"), "credential"
)
calls.refused("DeltaTable('uc://main.docs.no')", lambda: DeltaTable("uc://main.docs.no"), "no table 'main.docs.no'")
calls.say()
