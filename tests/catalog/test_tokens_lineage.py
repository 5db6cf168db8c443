"""Tokens, and lineage: who is calling, and what was made from what."""

import hashlib
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

import mosaic
from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import BadRequest, Conflict, NotFound, Unauthenticated
from mosaic.ids import is_id
from mosaic.protocol import Principal


def test_a_token_says_who_is_calling(catalog: Catalog, tmp_path: Path) -> None:
    token, secret = catalog.create_token("ann@example.org", comment="laptop")
    assert secret.startswith("mosaic_") and len(secret) == len("mosaic_") + 43 and is_id(token.id, "tok")
    assert catalog.check_token(secret) == Principal(name="ann@example.org", token_id=token.id)
    service, other = catalog.create_token("system", kind="service", is_admin=True)
    assert catalog.check_token(other) == Principal(name="system", kind="service", is_admin=True, token_id=service.id)
    assert [found.id for found in catalog.list_tokens()] == [token.id, service.id]
    catalog.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in kept and secret.removeprefix("mosaic_").encode() not in kept


def test_refused_tokens(catalog: Catalog, clock: FixedClock) -> None:
    for secret in ("", "mosaic_", "mosaic_" + "x" * 43, "\u00fc"):
        with pytest.raises(Unauthenticated, match="the token is unknown"):
            catalog.check_token(secret)
    token, secret = catalog.create_token("ann", expires_at=clock.now + timedelta(hours=1))
    clock.now += timedelta(minutes=59, seconds=59)
    catalog.check_token(secret)
    clock.now += timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match=rf"token {token.id} expired at 2026-11-01T11:00") as caught:
        catalog.check_token(secret)
    assert caught.value.code == "token_expired"
    token, secret = catalog.create_token("ann")
    catalog.revoke_token(token.id)
    clock.now += timedelta(hours=1)
    catalog.revoke_token(token.id)  # again is fine, and changes nothing
    with pytest.raises(Unauthenticated, match=rf"token {token.id} was revoked at 2026-11-01T11:00") as caught:
        catalog.check_token(secret)
    assert caught.value.code == "token_revoked"
    with pytest.raises(NotFound, match=rf"no token 'tok_1'; there are \[.*'{token.id}'"):
        catalog.revoke_token("tok_1")


def test_wrong_tokens(catalog: Catalog, clock: FixedClock) -> None:
    with pytest.raises(BadRequest, match="is not in the future"):
        catalog.create_token("ann", expires_at=clock.now)
    with pytest.raises(BadRequest, match="has no time zone"):
        catalog.create_token("ann", expires_at=datetime(2030, 1, 1))
    with pytest.raises(BadRequest, match="principal '' must be"):
        catalog.create_token("")
    with pytest.raises(BadRequest, match="kind 'robot' of a token must be"):
        catalog.create_token("ann", kind="robot")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="'system' is the platform's own"):
        catalog.create_token("system")


def test_the_last_use_is_noted_once_a_minute(catalog: Catalog, clock: FixedClock) -> None:
    _, secret = catalog.create_token("ann")
    start, revision = clock.now, catalog.revision()
    for seconds, noted in [(0, 0), (30, 0), (59, 0), (60, 60), (100, 60), (200, 200)]:
        clock.now = start + timedelta(seconds=seconds)
        catalog.check_token(secret)
        assert catalog.list_tokens()[0].last_used_at == start + timedelta(seconds=noted)
    assert catalog.revision() == revision


def test_checking_a_token_is_quick(catalog: Catalog) -> None:
    secret = [catalog.create_token(f"user{number}")[1] for number in range(50)][25]
    catalog.check_token(secret)
    taken = []
    for _ in range(200):
        started = time.perf_counter()
        catalog.check_token(secret)
        taken.append(time.perf_counter() - started)
    assert sorted(taken)[100] < 0.002


def test_runs(catalog: Catalog, clock: FixedClock) -> None:
    run_id = catalog.start_run("train", "bot", principal="ann", params={"lr": 0.1})
    assert is_id(run_id, "run")
    catalog.add_input(run_id, "table", "Main.ML.rows@4", None, {"rows": 10})
    catalog.add_input(run_id, "table", "main.ml.rows", 4, {"rows": 12})  # the same edge: the detail is replaced
    catalog.add_input(run_id, "base_model", "smollm2-135m-instruct", None)
    catalog.add_input(run_id, "base_model", "smollm2-135m-instruct", None)
    catalog.add_output(run_id, "model", "main.ml.bot/1", None)
    running = catalog.get_run(run_id)
    assert (running.status, running.finished_at, running.params) == ("running", None, {"lr": 0.1})
    clock.now += timedelta(minutes=5)
    catalog.finish_run(run_id, "finished", mlflow_run_id="abc", metrics={"loss": 0.5, "bad": float("nan"), "n": 3})
    run = catalog.get_run(run_id)
    assert (run.status, run.mlflow_run_id, run.finished_at) == ("finished", "abc", clock.now)
    assert run.metrics["loss"] == 0.5 and run.metrics["bad"] != run.metrics["bad"] and run.metrics["n"] == 3
    assert [(edge.kind, edge.name, edge.version, edge.detail) for edge in run.inputs] == [
        ("table", "main.ml.rows", 4, {"rows": 12}),
        ("base_model", "smollm2-135m-instruct", None, None),
    ]
    for found in (
        catalog.runs_that_made("model", "main.ml.bot", 1),
        catalog.runs_that_used("table", "main.ml.rows", 4),
        catalog.runs_that_used("table", "main.ml.rows", None),
        catalog.list_runs(kind="train", status="finished"),
    ):
        assert [one.run_id for one in found] == [run_id] and found[0].inputs == run.inputs
    assert catalog.runs_that_made("model", "main.ml.bot", 2) == [] == catalog.list_runs(kind="eval")


def test_a_run_says_what_program_started_it(catalog: Catalog, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from mosaic.catalog import Catalog\n"
        f"print(Catalog.open({catalog.url!r}).start_run('ingest', 'main.ml.rows', principal='ann'))\n"
    )
    run_id = subprocess.check_output([sys.executable, str(script)], text=True, cwd=tmp_path).strip()
    code = catalog.get_run(run_id).code
    assert code is not None and code.name == "job.py"
    assert code.detail == {
        "mosaic": mosaic.__version__,
        "sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
    }
    # the tests' own program is no script of a user
    code = catalog.get_run(catalog.start_run("ingest", "main.ml.rows", principal="ann")).code
    assert code is not None and (code.name, code.detail) == ("mosaic", {"mosaic": mosaic.__version__})


def test_runs_are_listed_by_what_they_touched_page_by_page(catalog: Catalog) -> None:
    made = [record(catalog, [("step", "s", 1)], [("table", "main.ml.t", number)]) for number in range(5)]
    record(catalog, [("step", "s", 1)], [])
    first = catalog.list_runs(edge_kind="table", limit=3)
    rest = catalog.list_runs(edge_kind="table", limit=3, before=first[-1].run_id)
    assert [run.run_id for run in (*first, *rest)] == made[::-1]
    assert [[edge.version for edge in run.outputs] for run in rest] == [[1], [0]]


def test_wrong_runs(catalog: Catalog) -> None:
    run_id = catalog.start_run("train", "bot", principal="ann")
    with pytest.raises(NotFound, match=rf"no run 'run_x'; there are \['{run_id}'\]"):
        catalog.get_run("run_x")
    with pytest.raises(NotFound, match="no run 'run_x'"):
        catalog.add_input("run_x", "base_model", "m", None)
    with pytest.raises(BadRequest, match="status 'done' must be one of"):
        catalog.finish_run(run_id, "done")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="metric 'loss' must be a number, not 'x'"):
        catalog.finish_run(run_id, "finished", metrics={"loss": "x"})  # type: ignore[dict-item]
    with pytest.raises(BadRequest, match="is given at two versions, 4 and 5"):
        catalog.add_input(run_id, "table", "main.ml.rows@4", 5)
    with pytest.raises(BadRequest, match="version -1 of table"):
        catalog.add_input(run_id, "table", "main.ml.rows", -1)
    with pytest.raises(BadRequest, match="kind 'Base model' must be"):
        catalog.add_input(run_id, "Base model", "x", None)
    with pytest.raises(BadRequest, match=r"an edge needs the exact version; .*main\.ml\.bot@champion"):
        catalog.add_input(run_id, "model", "main.ml.bot@champion", None)
    catalog.finish_run(run_id, "failed")
    with pytest.raises(Conflict, match=f"run {run_id} is already failed"):
        catalog.finish_run(run_id, "finished")
    with pytest.raises(Conflict, match="is already failed; it can have no new output"):
        catalog.add_output(run_id, "model", "main.ml.bot", 1)


def record(
    catalog: Catalog, inputs: list[tuple[str, str, int | None]], outputs: list[tuple[str, str, int | None]]
) -> str:
    run_id = catalog.start_run("step", "s", principal="ann")
    for kind, name, version in inputs:
        catalog.add_input(run_id, kind, name, version)
    for kind, name, version in outputs:
        catalog.add_output(run_id, kind, name, version)
    catalog.finish_run(run_id, "finished")
    return run_id


def test_trace_leads_back_to_the_origin(catalog: Catalog) -> None:
    rows, bot, base = "main.ml.rows", "main.ml.bot", "smollm2-135m-instruct"
    ingest = record(catalog, [("file", "s3://b/raw.csv", None)], [("table", rows, 3)])
    train = record(catalog, [("table", rows, 5), ("base_model", base, None)], [("model", bot, 1)])
    merge = record(catalog, [("model", bot, 1), ("base_model", base, None)], [("model", bot, 2)])
    node = catalog.trace("model", "Main.ML.bot/2", None)
    assert (node.name, node.version, node.run_id) == (bot, 2, merge)
    adapter, whole = node.parents
    assert (adapter.version, adapter.run_id, whole.name, whole.run_id) == (1, train, base, None)
    table, _ = adapter.parents
    # Nothing recorded made version 5; its rows come from the newest recorded write before it.
    assert (table.version, table.made_at_version, table.run_id) == (5, 3, ingest)
    assert [(parent.kind, parent.name, parent.parents) for parent in table.parents] == [("file", "s3://b/raw.csv", [])]
    assert catalog.trace("table", rows, 2).run_id is None
    unknown = catalog.trace("model", "main.ml.unknown", 1)
    assert (unknown.run_id, list(unknown.parents)) == (None, [])


def test_trace_ends_on_circles_and_shares_what_is_shared(catalog: Catalog) -> None:
    record(catalog, [("table", "main.ml.a", 1)], [("table", "main.ml.b", 1)])
    record(catalog, [("table", "main.ml.b", 1)], [("table", "main.ml.a", 1)])
    node = catalog.trace("table", "main.ml.a", 1)
    assert [parent.name for parent in node.parents[0].parents] == ["main.ml.a"]
    assert list(node.parents[0].parents[0].parents) == []
    # A ladder of diamonds has 2^20 paths; it must not be walked path by path.
    for level in range(20):
        inputs: list[tuple[str, str, int | None]] = [("step", f"l{level}", 1), ("step", f"r{level}", 1)]
        record(catalog, inputs, [("step", f"l{level + 1}", 1), ("step", f"r{level + 1}", 1)])
    started = time.monotonic()
    node, depth = catalog.trace("step", "l20", 1), 0
    while node.parents:
        node, depth = node.parents[0], depth + 1
    assert depth == 20 and time.monotonic() - started < 2


def test_a_name_that_is_taken_again_has_a_lineage_of_its_own(catalog: Catalog) -> None:
    """Its versions begin at 0 again, so the name and the version alone would mean both."""
    rows, bot, other = "main.ml.rows", "main.ml.bot", "main.ml.other"
    early = record(catalog, [], [("table", rows, 2)])  # noted before the name had a bearer

    def make(source: str, model: str) -> tuple[str, str]:
        catalog.create_table(rows, location=f"/lake/{source}", columns=[], primary_key=None, owner="ann")
        filled = record(catalog, [("file", source, None)], [("table", rows, 1)])
        catalog.create_model(model, owner="ann")
        return filled, record(catalog, [("table", rows, 1)], [("model", model, 1)])

    old_filled, old_trained = make("old.csv", bot)
    catalog.delete_table(rows, by="ann")
    assert catalog.trace("table", rows, 1).run_id == old_filled  # nothing bears the name now: the last that did
    new_filled, new_trained = make("new.csv", other)
    node = catalog.trace("table", rows, 1)
    assert (node.run_id, [parent.name for parent in node.parents]) == (new_filled, ["new.csv"])
    (behind,) = catalog.trace("model", bot, 1).parents
    assert (behind.run_id, [parent.name for parent in behind.parents]) == (old_filled, ["old.csv"])
    assert behind.securable_id not in (None, node.securable_id)
    assert [run.run_id for run in catalog.runs_that_made("table", rows, 1)] == [new_filled]
    assert [run.run_id for run in catalog.runs_that_used("table", rows, None)] == [new_trained]
    assert [(one.kind, one.name) for one in catalog.descendants("table", rows, 1).things()] == [("model", other)]
    below = catalog.descendants("file", "old.csv", None).things()
    assert [(one.kind, one.name) for one in below] == [("table", rows), ("model", bot)]
    catalog.delete_table(rows, by="ann")
    assert [run.run_id for run in catalog.runs_that_used("table", rows, 1)] == [new_trained] != [old_trained]
    assert [run.run_id for run in catalog.runs_that_made("table", rows, 2)] == [early]


def test_a_very_long_path_is_cut_off_and_says_so(catalog: Catalog) -> None:
    for version in range(1, 6):
        record(catalog, [("model", "main.ml.bot", version)], [("model", "main.ml.bot", version + 1)])
    node = catalog.trace("model", "main.ml.bot", 6, max_depth=2)
    last = node.parents[0].parents[0]
    assert (last.version, last.cut_off, list(last.parents), node.cut_off) == (4, True, [], False)
    with pytest.raises(BadRequest, match="max_depth = 101 must be from 0 to 100"):
        catalog.trace("model", "main.ml.bot", 6, max_depth=101)
    for version in range(6, 151):
        record(catalog, [("model", "main.ml.bot", version)], [("model", "main.ml.bot", version + 1)])
    read = catalog.ancestors("model", "main.ml.bot", 151)  # which has no limit
    assert sorted(one.read.version or 0 for one in read) == list(range(1, 151))


def write(catalog: Catalog, inputs: list[tuple[str, str, int | None]], name: str, version: int, mode: str) -> str:
    run_id = catalog.start_run("step", "s", principal="ann")
    for kind, read, at in inputs:
        catalog.add_input(run_id, kind, read, at, detail={"columns": [f"c{at}"]} if kind == "table" else None)
    catalog.add_output(run_id, "table", name, version, detail={"mode": mode})
    catalog.finish_run(run_id, "finished")
    return run_id


def test_a_version_comes_from_every_write_since_all_rows_were_replaced(catalog: Catalog) -> None:
    raw, rows = "main.ml.raw", "main.ml.rows"
    write(catalog, [("file", "before", None)], rows, 1, "append")
    first = write(catalog, [("file", "first", None)], rows, 2, "overwrite")
    for version, mode in ((3, "append"), (4, "merge"), (6, "delete")):
        last = write(catalog, [("table", raw, version)], rows, version, mode)
    unsaid = record(catalog, [("file", "unsaid", None)], [("table", rows, 5)])  # it may have left what was there
    node = catalog.trace("table", rows, 7)
    assert (node.made_at_version, node.run_id, node.earlier_runs) == (6, last, 4)
    assert [(one.name, one.version, one.earlier_versions) for one in node.parents] == [
        (raw, 6, (3, 4)),
        ("unsaid", None, ()),
        ("first", None, ()),
    ]
    assert node.parents[0].detail == {"columns": ["c6"]}
    assert [one.name for one in catalog.trace("table", rows, 3).parents] == [raw, "first"]
    assert [one.name for one in catalog.trace("table", rows, 2).parents] == ["first"]
    read = {(one.run_id, one.read.name, one.read.version) for one in catalog.ancestors("table", rows, 7)}
    assert len(read) == 5 and {(last, raw, 6), (unsaid, "unsaid", None), (first, "first", None)} < read


def test_what_appends_have_in_common_is_one_node(catalog: Catalog) -> None:
    """Thousands of appends from one source, each of a table that thousands of appends made, and merges into itself."""
    source, raw, rows = "s3://lake/raw", "main.ml.raw", "main.ml.rows"
    for version in range(1, 41):
        write(catalog, [("source", source, None)], raw, version, "append")
        write(catalog, [("table", raw, version), ("table", rows, version - 1)], rows, version, "merge")
    root = catalog.trace("table", rows, 40)
    own, of_raw = sorted(root.parents, key=lambda one: one.name, reverse=True)
    assert (own.name, own.version, len(own.earlier_versions), list(own.parents)) == (rows, 39, 39, [])
    assert (of_raw.version, of_raw.earlier_versions, of_raw.earlier_runs) == (40, tuple(range(1, 40)), 39)
    assert [(one.name, list(one.parents)) for one in of_raw.parents] == [(source, [])]
    assert len(catalog.ancestors("table", rows, 40)) == 120


def test_a_name_at_a_moment_is_what_bore_it_then(catalog: Catalog, clock: FixedClock) -> None:
    bot, moments = "main.ml.bot", []
    for source in ("old", "new"):
        catalog.create_model(bot, owner="ann")
        run_id = catalog.start_run("training", bot, principal="ann")
        catalog.add_input(run_id, "source", source, None)
        catalog.create_model_version(bot, source="/m", kind="full", run_id=run_id)
        catalog.finish_run(run_id, "finished")
        catalog.set_alias(bot, source, 1)
        clock.now += timedelta(hours=1)
        moments.append(clock.now)
        if source == "old":
            catalog.delete_model(bot)
            clock.now += timedelta(hours=1)

    def origin(at: datetime | None) -> str:
        (read,) = catalog.ancestors("model", bot, 1, at=at)
        (parent,) = catalog.trace("model", bot, 1, at=at).parents
        assert parent.name == read.read.name
        return parent.name

    old, new = moments
    hour = timedelta(hours=1)
    assert [origin(at) for at in (None, old - hour, old, old + hour / 2, new)] == ["new", "old", "old", "old", "new"]
    assert origin(old - 9 * hour) == "old"  # before there was any: clocks differ
    history = [[event.alias for event in catalog.alias_history(bot, at=at)] for at in (None, old, new)]
    assert history == [["new"], ["old"], ["new"]]
    catalog.delete_model(bot)
    assert [event.alias for event in catalog.alias_history(bot, at=new)] == ["new"]
    with pytest.raises(NotFound):
        catalog.alias_history(bot)
    with pytest.raises(BadRequest, match="has no time zone"):
        catalog.trace("model", bot, 1, at=datetime(2030, 1, 1))
    assert [one.deleted_at is None for one in catalog.bearers("model", bot)] == [False, False]


def test_a_version_fits_into_64_bits(catalog: Catalog) -> None:
    run_id = catalog.start_run("step", "s", principal="ann")
    catalog.add_input(run_id, "table", "main.ml.rows", 2**63 - 1)
    for ask in (catalog.trace, catalog.ancestors, catalog.descendants, catalog.runs_that_made):
        with pytest.raises(BadRequest, match=r"version 9223372036854775808 of table .* must be a whole number"):
            ask("table", "main.ml.rows", 2**63)
    with pytest.raises(BadRequest, match="version True of table"):
        catalog.add_input(run_id, "table", "main.ml.rows", True)


def test_secrets_are_not_in_the_database_but_their_hash_is(catalog: Catalog) -> None:
    _, secret = catalog.create_token("ann")
    engine = sa.create_engine(catalog.url)
    with engine.connect() as connection:
        hashes = connection.execute(sa.text("SELECT secret_sha256 FROM token")).scalars().all()
    engine.dispose()
    assert hashes == [hashlib.sha256(secret.encode()).hexdigest()]
