"""What an index is: which table, which text of it, embedded by what."""

import string
from typing import Any, Self

from pydantic import Field, model_validator

from mosaic.settings import Settings


class IndexSettings(Settings):
    """A vector index that follows a Delta table; all of it is fixed when the index is made."""

    name: str
    """`catalog.schema.index`."""
    table: str
    """The Delta table it follows, `catalog.schema.table`."""
    primary_key: str
    """The table's column that names a row; its values must be unique."""
    text_columns: tuple[str, ...] = Field(min_length=1)
    """Columns whose text is embedded, joined by line breaks unless there is a template."""
    text_template: str | None = None
    """How to put the text columns together, such as `{title}: {body}`."""
    payload_columns: tuple[str, ...] = ()
    """Columns that come back with every hit."""
    embedding_endpoint: str = Field(min_length=1)
    """The endpoint that turns text into vectors, for rows and for queries."""
    batch_size: int = Field(default=256, ge=1, le=4096)
    """Texts per request to the embedding endpoint."""
    poll_seconds: float = Field(default=1.0, gt=0)
    """How often the index looks for a new version of its table."""

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.text_template is None:
            return self
        used = {field for _, field, _, _ in string.Formatter().parse(self.text_template) if field is not None}
        wrong = sorted(used - set(self.text_columns))
        if wrong or not used:
            raise ValueError(f"text_template uses {wrong or 'no column'}; it may use text_columns: {self.text_columns}")
        return self

    @property
    def columns(self) -> list[str]:
        """The table's columns that it reads, each once."""
        return list(dict.fromkeys((self.primary_key, *self.text_columns, *self.payload_columns)))

    def text_of(self, row: dict[str, Any]) -> str:
        """The text of a row that is embedded; empty if all its text columns are null or blank."""
        parts = {column: "" if row[column] is None else str(row[column]) for column in self.text_columns}
        if not any(part.strip() for part in parts.values()):
            return ""
        return self.text_template.format(**parts) if self.text_template else "\n".join(p for p in parts.values() if p)
