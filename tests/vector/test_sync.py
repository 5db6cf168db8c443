"""An index and its table stay equal, whatever is written; content that is known is not embedded again."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.data import Tables
from mosaic.errors import BadRequest, Conflict, EngineFailed
from mosaic.vector import HashEmbedder, IndexSettings, Synchroniser, VectorIndex

SCHEMA = pa.schema([pa.field("id", pa.string()), ("title", pa.string()), ("body", pa.string())])
SETTINGS = IndexSettings(
    name="main.test.docs_index",
    table="main.test.docs",
    primary_key="id",
    text_columns=("title", "body"),
    payload_columns=("title",),
    embedding_endpoint="hash",
    batch_size=3,
)


def rows(content: dict[str, tuple[str | None, str | None]]) -> pa.Table:
    records = [{"id": id_, "title": title, "body": body} for id_, (title, body) in content.items()]
    return pa.Table.from_pylist(records, schema=SCHEMA)


class Setting:
    """A Delta table at a path and an index that follows it."""

    def __init__(self, path: str, embed: Any = None, index_settings: IndexSettings = SETTINGS) -> None:
        self.path, self.settings = path, index_settings
        DeltaTable.create(path, schema=SCHEMA, configuration={"delta.enableChangeDataFeed": "true"})
        self.embed = embed if embed is not None else HashEmbedder(16)
        self.restart(VectorIndex())

    def restart(self, index: VectorIndex) -> None:
        self.index = index
        self.synchroniser = Synchroniser(
            lambda version: DeltaTable(self.path, version=version),
            lambda table, columns: pa.table(table.scan(columns=columns)),
            index,
            self.embed,
            self.settings,
        )

    def append(self, content: dict[str, tuple[str | None, str | None]]) -> None:
        write_deltalake(self.path, rows(content), mode="append")

    def overwrite(self, content: dict[str, tuple[str | None, str | None]]) -> None:
        write_deltalake(self.path, rows(content), mode="overwrite")

    def titles(self) -> dict[str, Any]:
        return {id_: payload["title"] for id_, (_, payload) in self.index.contents().items()}

    def check(self, content: dict[str, tuple[str | None, str | None]]) -> None:
        """The index holds exactly the good rows, and each is found by its own text."""
        good = {id_: row for id_, row in content.items() if any(part and part.strip() for part in row)}
        assert self.titles() == {id_: row[0] for id_, row in good.items()}
        assert sum(self.synchroniser.quarantine().values()) == len(content) - len(good)
        for row in good.values():
            text = "\n".join(part for part in row if part)
            hits = self.index.search(HashEmbedder(16)([text])[0], len(good), exact=True)
            same = {id_ for id_, other in good.items() if "\n".join(part for part in other if part) == text}
            assert {hit.id for hit in hits[: len(same)]} >= same or hits[len(same) - 1].score > 0.999


@pytest.fixture
def place(tmp_path: Path) -> Setting:
    return Setting(str(tmp_path / "table"))


texts = st.sampled_from([None, "", " ", "red fox", "blue whale", "green tea", "old red wine"])
some = st.dictionaries(st.sampled_from([f"id{n}" for n in range(8)]), st.tuples(texts, texts), min_size=1, max_size=5)
steps = st.one_of(
    st.tuples(st.sampled_from(["merge", "overwrite"]), some),
    st.tuples(st.just("delete"), st.sampled_from([f"id{n}" for n in range(8)])),
    st.sampled_from([("compact", None), ("vacuum", None), ("sync", None), ("sync", None), ("reload", None)]),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=10))
def test_whatever_is_written_the_index_equals_the_table(history: list[tuple[str, Any]]) -> None:
    folder = tempfile.mkdtemp()
    try:
        place, content = Setting(f"{folder}/table"), dict[str, Any]()
        for number, (kind, value) in enumerate(history):
            table = DeltaTable(place.path)
            if kind == "merge":
                merger = table.merge(rows(value), "t.id = s.id", source_alias="s", target_alias="t")
                merger.when_matched_update_all().when_not_matched_insert_all().execute()
                content |= value
            elif kind == "overwrite":
                place.overwrite(value)
                content = dict(value)
            elif kind == "delete":
                table.delete(f"id = '{value}'")
                content.pop(value, None)
            elif kind == "compact":
                table.optimize.compact()
            elif kind == "vacuum":
                table.vacuum(0, dry_run=False, enforce_retention_duration=False)
            elif kind == "reload" and place.index.dimension is not None:
                place.index.save(Path(folder, f"saved{number}"))
                place.restart(VectorIndex.load(Path(folder, f"saved{number}")))
            elif kind == "sync":
                place.synchroniser.sync()
                place.check(content)
        assert place.synchroniser.sync().version == DeltaTable(place.path).version()
        place.check(content)
    finally:
        shutil.rmtree(folder)


def test_results_say_what_was_done(place: Setting) -> None:
    place.append({"a": ("red fox", "x"), "b": ("blue whale", "y")})
    first = place.synchroniser.sync()
    assert (first.version, first.upserted, first.deleted, first.embedded, first.full) == (1, 2, 0, 2, True)
    DeltaTable(place.path).delete("id = 'a'")
    place.append({"c": ("red fox", "x"), "d": ("green tea", "z")})
    second = place.synchroniser.sync()
    assert (second.version, second.upserted, second.deleted, second.embedded, second.full) == (3, 2, 1, 1, False)
    again = place.synchroniser.sync()
    assert (again.version, again.upserted, again.deleted, again.embedded) == (3, 0, 0, 0)
    assert place.synchroniser.table_version == 3


def test_overwriting_with_the_same_rows_embeds_nothing(place: Setting) -> None:
    content = {f"id{n}": (f"word{n}", "text") for n in range(20)}
    place.append(content)
    place.synchroniser.sync()
    assert place.embed.num_texts == 20
    place.overwrite(content)
    result = place.synchroniser.sync()
    assert (result.embedded, result.upserted, result.deleted, result.full) == (0, 0, 0, False)
    place.overwrite({id_: (title, "text") for id_, (title, _) in reversed(content.items())} | {"id3": ("new", "text")})
    assert place.synchroniser.sync().embedded == 1
    assert place.embed.num_texts == 21


def test_a_payload_changes_without_embedding(tmp_path: Path) -> None:
    only_body = SETTINGS.model_copy(update={"text_columns": ("body",)})
    place = Setting(str(tmp_path / "t"), index_settings=only_body)
    place.append({"a": ("old", "same text")})
    place.synchroniser.sync()
    DeltaTable(place.path).update({"title": "'new'"})
    result = place.synchroniser.sync()
    assert (result.upserted, result.embedded) == (1, 0)
    assert place.titles() == {"a": "new"}


def test_a_recreated_table_is_compared_whole(place: Setting) -> None:
    place.append({"a": ("red fox", "x"), "b": ("blue whale", "y")})
    for _ in range(3):
        place.append({})
    place.synchroniser.sync()
    shutil.rmtree(place.path)
    DeltaTable.create(place.path, schema=SCHEMA, configuration={"delta.enableChangeDataFeed": "true"})
    place.append({"b": ("blue whale", "y"), "c": ("green tea", "z")})
    result = place.synchroniser.sync()
    assert (result.version, result.full, result.embedded, result.deleted) == (1, True, 1, 1)
    place.check({"b": ("blue whale", "y"), "c": ("green tea", "z")})


def test_a_table_without_feed_is_followed_too(tmp_path: Path) -> None:
    place = Setting(str(tmp_path / "t"))
    DeltaTable(place.path).alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    place.append({"a": ("red fox", "x"), "b": ("blue whale", "y"), "c": ("green tea", "z")})
    place.synchroniser.sync()
    DeltaTable(place.path).update({"title": "'old red wine'"}, predicate="id = 'a'")
    DeltaTable(place.path).delete("id = 'b'")
    assert place.synchroniser.sync().embedded == 1
    place.check({"a": ("old red wine", "x"), "c": ("green tea", "z")})
    DeltaTable(place.path).alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    place.append({"d": ("red fox", "x")})
    assert place.synchroniser.sync().embedded == 0
    place.check({"a": ("old red wine", "x"), "c": ("green tea", "z"), "d": ("red fox", "x")})


def test_bad_rows_are_counted_with_their_reason_and_leave_it_when_mended(place: Setting) -> None:
    place.append({"a": ("red fox", None), "b": (None, "  "), "c": (None, None)})
    write_deltalake(place.path, rows({"a": ("red fox", None)}).slice(0, 0), mode="append")
    null_key = pa.Table.from_pylist([{"id": None, "title": "x", "body": "y"}], schema=SCHEMA)
    write_deltalake(place.path, null_key, mode="append")
    place.synchroniser.sync()
    assert place.synchroniser.quarantine() == {"text is null or empty": 2, "primary key 'id' is null": 1}
    DeltaTable(place.path).update({"body": "'mended'"}, predicate="id = 'b'")
    DeltaTable(place.path).update({"title": "''"}, predicate="id = 'a'")
    place.synchroniser.sync()
    assert set(place.titles()) == {"b"}, "a row that became bad is not answered with its old text"
    DeltaTable(place.path).delete("id = 'c' or id is null")
    place.synchroniser.sync()
    assert place.synchroniser.quarantine()["text is null or empty"] == 1


def test_doubled_keys_are_rejected(place: Setting) -> None:
    place.append({"a": ("one", "x"), "b": ("two", "y")})
    place.append({"a": ("other", "x")})
    place.synchroniser.sync()
    assert set(place.titles()) == {"b"}
    assert place.synchroniser.quarantine() == {"primary key comes more than once": 1}


class Picky(HashEmbedder):
    """Refuses, breaks or widens certain texts, as real models do."""

    def __call__(self, texts: list[str]) -> Any:
        if any("toolong" in text for text in texts):
            raise BadRequest("text has 900 tokens, the model takes 512")
        if any("missing" in text for text in texts):
            return super().__call__(texts)[:-1]
        matrix = super().__call__(texts)
        matrix[["nan" in text for text in texts]] = np.nan
        return np.pad(matrix, ((0, 0), (0, 1))) if any("wide" in text for text in texts) else matrix


def test_what_cannot_be_embedded_does_not_stop_the_rest(tmp_path: Path) -> None:
    place = Setting(str(tmp_path / "t"), Picky(16))
    place.append({f"id{n}": (f"fine {n}", None) for n in range(4)})
    place.synchroniser.sync()
    place.append({"long": ("toolong", None), "nan": ("nan", None), "ok": ("fine", None)})
    place.append({"wide": ("wide", None)})
    calls: list[tuple[int, int]] = []
    result = place.synchroniser.sync(progress=lambda done, total: calls.append((done, total)))
    assert set(place.titles()) == {"id0", "id1", "id2", "id3", "ok"}
    assert place.synchroniser.quarantine() == {
        "cannot be embedded: text has 900 tokens, the model takes 512": 1,
        "vector holds numbers that are not finite": 1,
        "vector has 17 dimensions, not 16": 1,
    }
    assert result.embedded == 4 and calls == [(3, 4), (4, 4)]


def test_a_failing_embedder_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    place = Setting(str(tmp_path / "t"), Picky(16))
    place.append({"a": ("fine", None)})
    place.synchroniser.sync()
    place.append({"b": ("missing", None)})
    with pytest.raises(EngineFailed, match="shape \\(0, 16\\) for 1 texts"):
        place.synchroniser.sync()
    assert place.index.version == 1 and set(place.titles()) == {"a"}
    assert place.synchroniser.table_version == 2


def test_versions_only_grow(place: Setting) -> None:
    for n in range(3):
        place.append({f"id{n}": (f"t{n}", None)})
    assert place.synchroniser.sync(2).version == 2
    assert set(place.titles()) == {"id0", "id1"}
    with pytest.raises(Conflict, match="is at version 2, past 1"):
        place.synchroniser.sync(1)
    assert place.synchroniser.sync().version == 3


def test_columns_that_vanish_are_named(place: Setting) -> None:
    place.append({"a": ("fine", None)})
    place.synchroniser.sync()
    write_deltalake(place.path, pa.table({"id": ["a"], "title": ["t"]}), mode="overwrite", schema_mode="overwrite")
    with pytest.raises(BadRequest, match="no column 'body'; there are"):
        place.synchroniser.sync()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_columns": []}, "text_columns"),
        ({"text_template": "{nothing}"}, "text_template uses \\['nothing'\\]"),
        ({"text_template": "plain"}, "uses no column"),
        ({"batch_size": 0}, "batch_size"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_settings_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        IndexSettings.parse({**SETTINGS.model_dump(), **change})


def test_templates_put_columns_together() -> None:
    made = SETTINGS.model_copy(update={"text_template": "{title}: {body}"})
    assert made.text_of({"title": "A", "body": None}) == "A: "
    assert made.text_of({"title": None, "body": " "}) == ""
    assert SETTINGS.text_of({"title": None, "body": "B"}) == "B"


def test_tables_and_indexes_meet(tables: Tables, index_settings: IndexSettings) -> None:
    tables.append("main.test.docs", pa.table({"id": ["a"], "title": ["red fox"], "body": ["x"]}))
    index = VectorIndex()
    synchroniser = Synchroniser(
        lambda version: tables.delta("main.test.docs", version),
        lambda table, columns: tables.to_arrow("main.test.docs", table.version(), columns),
        index,
        HashEmbedder(16),
        index_settings,
    )
    assert synchroniser.sync().version == tables.version("main.test.docs") == index.version
