"""Finding things by words in their names and comments, and by tags, as far as the one who asks may know of them."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from mosaic.catalog import access, privileges
from mosaic.catalog.names import METASTORE
from mosaic.catalog.privileges import BROWSE
from mosaic.catalog.records import Found
from mosaic.catalog.schema import securable, tag
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest
from mosaic.protocol import Principal

_MOST = 1000
_MOST_WORDS, _MOST_TAGS = 20, 20


def search(
    store: Store,
    principal: Principal,
    words: str,
    *,
    kinds: Sequence[str],
    tags: Mapping[str, str | None],
    limit: int,
) -> list[Found]:
    """By kind and name. Costs one scan of the live names, and one check of a grant for each hit until `limit`."""
    if not 1 <= limit <= _MOST:
        raise BadRequest(f"limit = {limit} must be from 1 to {_MOST}", param="limit")
    asked = words.lower().split()
    if len(asked) > _MOST_WORDS:
        raise BadRequest(f"{len(asked)} words are asked for; up to {_MOST_WORDS} are searched", param="words")
    if len(tags) > _MOST_TAGS:
        raise BadRequest(f"{len(tags)} tags are asked for; up to {_MOST_TAGS} are searched", param="tag")
    for kind in kinds:
        privileges.check_kind(kind)
    text = sa.func.lower(securable.c.full_name + " " + securable.c.comment)
    query = sa.select(securable).where(securable.c.deleted_at.is_(None), securable.c.kind != METASTORE)
    if kinds:
        query = query.where(securable.c.kind.in_(set(kinds)))
    for word in asked:
        query = query.where(text.contains(word, autoescape=True))
    for key, value in tags.items():
        tagged = (tag.c.securable_id == securable.c.id) & (tag.c.version == "") & (tag.c.key == key)
        if value is not None:
            tagged &= tag.c.value == value
        query = query.where(sa.exists(sa.select(tag.c.key).where(tagged).correlate(securable)))
    hits: list[Found] = []
    with store.read() as connection:
        for row in connection.execute(query.order_by(securable.c.kind, securable.c.full_name)):
            told = access.ask(connection, principal.name, BROWSE, row.kind, row.full_name)
            if told.known_principal and (principal.is_admin or told.allowed):
                hits.append(
                    Found(
                        kind=row.kind,
                        name=row.full_name,
                        owner=row.owner,
                        comment=row.comment,
                        tags=_tags(connection, row.id),
                    )
                )
            if len(hits) == limit:
                break
    return hits


def _tags(connection: sa.Connection, securable_id: str) -> dict[str, str]:
    query = sa.select(tag.c.key, tag.c.value).where(tag.c.securable_id == securable_id, tag.c.version == "")
    return {row.key: row.value for row in connection.execute(query.order_by(tag.c.key))}
