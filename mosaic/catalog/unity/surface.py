"""What all of the protocol's routes have in hand, and how the catalog's values are said in its shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import METASTORE
from mosaic.catalog.records import CatalogEntry, Model, Schema, Securable, Table
from mosaic.catalog.unity.authorize import Authorize
from mosaic.catalog.unity.call import Call
from mosaic.catalog.unity.shapes import Update
from mosaic.protocol import Principal
from mosaic.storage import Storage

Named = TypeVar("Named", CatalogEntry, Schema, Table, Model, Securable)


@dataclass(frozen=True)
class Surface:
    """The collaborators of the routes."""

    catalog: Catalog
    storage: Storage
    """Where managed tables and models live."""
    authorize: Authorize

    def given(self, call: Call, asked: Update) -> dict[str, Any]:
        """What of a securable is to be changed, and which etag it must have."""
        return {**asked.given(), "expected_etag": call.expected_etag}

    def seen(self, principal: Principal, kind: str, records: Sequence[Named]) -> list[Named]:
        """Those of the records that the principal may know of."""
        parents = {record.name.rpartition(".")[0] or METASTORE for record in records}
        names = {name for parent in parents for name in self.catalog.grants.visible(principal, kind, parent)}
        return [record for record in records if record.name in names]


def milliseconds(moment: datetime) -> int:
    """Since 1970, as the protocol says times."""
    return int(moment.timestamp() * 1000)


def described(record: Any) -> dict[str, Any]:
    """The fields that every securable has."""
    return {
        "etag": record.etag,
        "comment": record.comment or None,
        "owner": record.owner,
        "created_at": milliseconds(record.created_at),
        "created_by": record.created_by,
        "updated_at": milliseconds(record.updated_at),
        "updated_by": record.updated_by,
    }


def split(full_name: str) -> Mapping[str, str]:
    """The parts of a name of three levels, as every shape has them."""
    catalog, schema, name = full_name.split(".")
    return {"catalog_name": catalog, "schema_name": schema, "name": name, "full_name": full_name}
