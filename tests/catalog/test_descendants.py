"""All that was made from something: the walk down against brute force, and against the walk up."""

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.catalog import Catalog, LineageNode, RunEdge, lineage
from mosaic.catalog.lineage import Thing
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest

A, B, BOT = "main.ml.a", "main.ml.b", "main.ml.bot"
Edge = tuple[str, str, int | None]


def record_all(catalog: Catalog, steps: list["Step"]) -> None:
    """Many runs in one transaction, since each by itself waits for the disk."""
    store = Store(catalog.url)
    with store.write() as connection:
        for step in steps:
            made_by: dict[str, Any] = {"kind": "step", "name": "s", "principal": "ann", "params": {}}
            run_id = lineage.start(connection, now=datetime.now(UTC), **made_by)
            for edge in step.inputs:
                lineage.add_edge(connection, run_id, "input", Thing(*edge), None)
            for *edge, mode in step.outputs:
                lineage.add_edge(connection, run_id, "output", Thing(*edge), {"mode": mode} if mode else None)
    store.close()


def record(catalog: Catalog, inputs: list[Edge], outputs: list[Edge], mode: str | None = None) -> str:
    run_id = catalog.start_run("step", "s", principal="ann")
    for kind, name, version in inputs:
        catalog.add_input(run_id, kind, name, version)
    for kind, name, version in outputs:
        catalog.add_output(run_id, kind, name, version, detail={"mode": mode} if mode and kind == "table" else None)
    catalog.finish_run(run_id, "finished")
    return run_id


def below(catalog: Catalog, kind: str, name: str, version: int | None) -> list[Edge]:
    return [tuple(thing) for thing in catalog.descendants(kind, name, version).things()]


def test_everything_downstream_nearest_first(catalog: Catalog) -> None:
    examples = record(catalog, [("table", A, 1)], [("table", B, 1)], "overwrite")
    train = record(catalog, [("table", B, 1), ("base_model", "smol", None)], [("model", BOT, 1)])
    record(catalog, [("model", BOT, 1)], [("model", BOT, 2)])
    record(catalog, [("table", "main.ml.other", 1)], [("model", BOT, 3)])
    assert below(catalog, "table", A, 1) == [("table", B, 1), ("model", BOT, 1), ("model", BOT, 2)]
    assert below(catalog, "base_model", "smol", None) == [("model", BOT, 1), ("model", BOT, 2)]
    found = catalog.descendants("table", A, 1)
    assert [(use.run_id, use.runs_between) for use in found.uses][:2] == [(examples, 1), (train, 2)]
    assert (found.uses[1].read.name, found.uses[1].made[0].name, found.cut_off) == (B, BOT, False)
    assert below(catalog, "model", BOT, 2) == below(catalog, "table", "main.ml.unknown", None) == []


def test_a_version_lives_on_until_all_rows_are_replaced(catalog: Catalog) -> None:
    for version, mode in [(1, "overwrite"), (2, "append"), (4, "overwrite")]:
        record(catalog, [("file", f"f{version}", None)], [("table", A, version)], mode)
    for version in range(1, 6):
        record(catalog, [("table", A, version)], [("model", BOT, version)])
    of = {version: [made[2] for made in below(catalog, "table", A, version)] for version in range(6)}
    assert of == {0: [], 1: [1, 2, 3], 2: [2, 3], 3: [3], 4: [4, 5], 5: [5]}
    assert [made[2] for made in below(catalog, "table", A, None)] == [1, 2, 3, 4, 5]
    assert [made[2] for made in below(catalog, "file", "f2", None) if made[0] == "model"] == [2, 3]


def test_uses_that_are_left_out(catalog: Catalog) -> None:
    first = record(catalog, [("table", A, 1)], [("model", BOT, 1)])
    record(catalog, [("table", A, 1)], [("model", BOT, 2)])
    left = catalog.descendants("table", A, 1, without=[(first, 1)])
    assert [thing.version for thing in left.things()] == [2]
    assert len(catalog.descendants("table", A, 1, without=[(first, 2)]).things()) == 2


def test_circles_end_and_long_paths_are_cut_off(catalog: Catalog) -> None:
    record(catalog, [("table", A, 1)], [("table", B, 1)])
    record(catalog, [("table", B, 1)], [("table", A, 1)])
    assert below(catalog, "table", A, 1) == [("table", B, 1), ("table", A, 1)]
    for level in range(6):
        record(catalog, [("step", f"l{level}", 1)], [("step", f"l{level + 1}", 1)])
    cut = catalog.descendants("step", "l0", 1, max_depth=2)
    assert ([thing.name for thing in cut.things()], cut.cut_off) == (["l1", "l2"], True)
    assert not catalog.descendants("step", "l0", 1, max_depth=6).cut_off
    assert catalog.descendants("step", "l0", 1, max_depth=0).cut_off
    with pytest.raises(BadRequest, match="max_depth = 101 must be from 0 to 100"):
        catalog.descendants("step", "l0", 1, max_depth=101)


def test_wide_and_laddered_graphs_are_walked_once(catalog: Catalog) -> None:
    rungs = [[("step", f"l{level}", 1), ("step", f"r{level}", 1)] for level in range(21)]
    steps = [Step(above, [(*made, None) for made in under]) for above, under in itertools.pairwise(rungs)]
    for version in range(1, 601):  # more than one statement takes
        steps.append(Step([("table", A, version)], [("index", "main.ml.a_index", version, None)]))
    record_all(catalog, steps)
    started = time.monotonic()
    assert len(below(catalog, "step", "l0", 1)) == 40
    assert len(below(catalog, "table", A, 1)) == 600
    assert time.monotonic() - started < 2


def test_what_a_detail_may_say(catalog: Catalog) -> None:
    run_id = catalog.start_run("step", "s", principal="ann")
    catalog.add_input(run_id, "table", A, 1, detail={"columns": ["x"], "predicate": "x > 1", "role": "train"})
    catalog.add_output(run_id, "table", B, 1, detail={"mode": "merge"})
    assert catalog.descendants("table", A, 1).uses[0].read.detail == {
        "columns": ["x"],
        "predicate": "x > 1",
        "role": "train",
    }
    for wrong in ({"columns": "x"}, {"columns": [1]}, {"predicate": ""}, {"predicate": 1}):
        with pytest.raises(BadRequest, match=r"detail\.(columns|predicate) = "):
            catalog.add_input(run_id, "table", A, 2, detail=wrong)
    with pytest.raises(BadRequest, match=r"detail\.mode = 'replace' must be one of \['append', 'delete', 'merge'"):
        catalog.add_output(run_id, "table", B, 2, detail={"mode": "replace"})


class Step(NamedTuple):
    inputs: list[tuple[str, str, int | None]]
    outputs: list[tuple[str, str, int | None, str | None]]


EDGES = st.tuples(st.sampled_from(["table", "index"]), st.sampled_from("ab"), st.none() | st.integers(0, 4))
MADE = st.tuples(EDGES, st.sampled_from([None, "append", "overwrite"])).map(lambda one: (*one[0], one[1]))
STEPS = st.lists(
    st.builds(Step, st.lists(EDGES, min_size=1, max_size=2), st.lists(MADE, min_size=1, max_size=2)), max_size=8
)
NUMBERS = itertools.count()


def brute_force(steps: list[Step], root: Edge) -> dict[Edge, int]:
    """Every thing below with the number of runs between: over and over all edges, until nothing is new."""
    replaced = {(n, v) for step in steps for k, n, v, mode in step.outputs if k == "table" and mode == "overwrite"}

    def reads(edge: Edge, thing: Edge) -> bool:
        (kind, name, at), (_, _, version) = edge, thing
        if (kind, name) != thing[:2]:
            return False
        if at is None or (version is None and thing is root):
            return True
        if version is None or kind != "table":
            return at == version
        return at >= version and not any(n == name and v is not None and version < v <= at for n, v in replaced)

    depth, level, found = 0, [root], dict[Edge, int]()
    while level:
        depth += 1
        runs = [step for step in steps if any(reads(edge, thing) for edge in step.inputs for thing in level)]
        level = [made for step in runs for *rest, _ in step.outputs if (made := tuple(rest)) not in found]  # type: ignore
        found |= dict.fromkeys((made for made in level), depth)
    return found


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, root=EDGES)
def test_the_walk_finds_what_brute_force_finds(catalog_of_many: Catalog, steps: list[Step], root: Edge) -> None:
    schema = f"main.s{next(NUMBERS)}"

    def named(kind: str, name: str, version: int | None) -> Edge:
        return (kind, f"{schema}.{name}", version)

    record_all(
        catalog_of_many,
        [
            Step([named(*edge) for edge in step.inputs], [(*named(*made[:3]), made[3]) for made in step.outputs])
            for step in steps
        ],
    )
    # The same edge again replaces the detail.
    last = {(number, made[:3]): made[3] for number, step in enumerate(steps) for made in step.outputs}
    steps = [
        Step(step.inputs, [(*made[:3], last[number, made[:3]]) for made in step.outputs])
        for number, step in enumerate(steps)
    ]
    found = catalog_of_many.descendants(*named(*root))
    between: dict[Edge, int] = {}
    for use in found.uses:
        for made in use.made:
            between.setdefault((made.kind, made.name, made.version), use.runs_between)
    assert between == {named(*thing): depth for thing, depth in brute_force(steps, root).items()}
    assert list(between) == [tuple(thing) for thing in found.things()]

    # The walk up and the walk down agree, where a table's version also has the origins of the writes before it.
    things = {named(*made[:3]) for step in steps for made in step.outputs if made[2] is not None}
    below_root = {named(*thing) for thing in brute_force(steps, root)}
    for thing in things:
        read = {Thing(*edge_of(one.read)) for one in catalog_of_many.ancestors(*thing)}
        lived = {other for other in things if lives_on(steps, other[2], thing) and other[:2] == thing[:2]}
        is_below = any(sees(steps, edge, named(*root)) for edge in read)
        assert is_below == bool(lived & below_root)
        assert nodes(catalog_of_many.trace(*thing, max_depth=12)) - {thing} == read - {thing}


def edge_of(edge: RunEdge) -> Edge:
    return edge.kind, edge.name, edge.version


def lives_on(steps: list[Step], version: int | None, later: Edge) -> bool:
    """Whether rows of a table's version may be in a later one; another thing is itself alone."""
    kind, name, at = later
    if version is None or at is None or kind != "table":
        return version == at
    short = name.rpartition(".")[2]
    written = [made for step in steps for made in step.outputs if made[:2] == (kind, short)]
    return version <= at and not any(made[3] == "overwrite" and version < (made[2] or 0) <= at for made in written)


def sees(steps: list[Step], read: Edge, root: Edge) -> bool:
    """Whether who read this read something of what is asked about."""
    return read[:2] == root[:2] and (None in (read[2], root[2]) or lives_on(steps, root[2], read))


def nodes(root: LineageNode) -> set[Edge]:
    """What stands above the root, which itself is left out unless it is its own origin."""
    found: set[Edge] = set()
    open_ = list(root.parents)
    seen: set[int] = set()
    while open_:
        node = open_.pop()
        if id(node) not in seen:
            seen.add(id(node))
            found.update((node.kind, node.name, version) for version in (node.version, *node.earlier_versions))
            open_.extend(node.parents)
    return found


@pytest.fixture(scope="module")
def catalog_of_many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path_factory.mktemp('lineage')}/catalog.db")
    yield made
    made.close()
