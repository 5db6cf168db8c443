"""What an ingestion read: one row for each raw file in a table, the manifest, and one source in the run's lineage.

Thousands of files would be thousands of edges. So the source's edge says how many there were, the checksum over all of
theirs, and where they are listed; `mosaic why` looks the file of a retrieved row up there (its `source` up to a `#` is
the file's `uri`).
"""

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog import Catalog
from mosaic.data.tables import Tables
from mosaic.errors import BadRequest

SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        ("file", pa.string()),
        ("bytes", pa.int64()),
    ]
)


def note_source(
    tables: Tables, catalog: Catalog, run_id: str, source: str, files: pa.Table, *, manifest: str, owner: str
) -> int:
    """Write down the files that a running run read from a source; the version of the manifest that lists them.

    `files` has the columns of SCHEMA, each uri once; the table `manifest` is made if it is not there.
    """
    rows = pa.Table.from_arrays([files[name] for name in SCHEMA.names], schema=SCHEMA).sort_by("uri")
    if rows.num_rows != len(pc.unique(rows["uri"])):
        raise BadRequest(f"a file of source {source!r} is listed twice", param="files")
    tables.create(manifest, SCHEMA, primary_key="uri", owner=owner, comment=f"The files that were read from {source}.")
    version = tables.overwrite(manifest, rows, run_id=run_id)
    detail = {"documents": rows.num_rows, "sha256": digest(rows), "manifest": f"{manifest}@{version}"}
    catalog.add_input(run_id, "source", source, None, detail=detail)
    return version


def digest(files: pa.Table) -> str:
    """SHA-256 over a line `sha256  uri` for each file, by uri: what `sha256sum` prints of them."""
    lines = sorted((row["uri"], row["sha256"]) for row in files.select(["uri", "sha256"]).to_pylist())
    return hashlib.sha256("".join(f"{sha256}  {uri}\n" for uri, sha256 in lines).encode()).hexdigest()
