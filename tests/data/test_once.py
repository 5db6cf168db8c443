"""Numbered pieces into a table exactly once: again, at once, over a gap, and beside other writers."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from mosaic.data import Tables
from mosaic.errors import BadRequest, Conflict, PermissionDenied
from mosaic.protocol import Principal

TABLE, WORK = "main.test.answers", "batch_x"
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def rows(*numbers: int) -> pa.Table:
    return pa.table({"n": list(numbers)}, schema=SCHEMA)


@pytest.fixture
def answers(tables: Tables) -> Tables:
    tables.create(TABLE, SCHEMA, primary_key=None, owner="admin")
    return tables


def test_a_piece_is_there_once_and_says_how_far_the_work_is(answers: Tables) -> None:
    assert answers.position(TABLE, WORK) == 0
    assert answers.append_once(TABLE, rows(1, 2), WORK, 1, after=0) == 1
    assert answers.append_once(TABLE, rows(1, 2), WORK, 1, after=0) is None
    assert answers.append_once(TABLE, rows(5), WORK, 3, after=1) == 2
    assert answers.position(TABLE, WORK) == 3 and answers.position(TABLE, "another") == 0
    assert sorted(answers.to_arrow(TABLE)["n"].to_pylist()) == [1, 2, 5]


def test_what_would_hide_a_missing_piece_is_refused(answers: Tables) -> None:
    answers.append_once(TABLE, rows(1), WORK, 1, after=0)
    with pytest.raises(Conflict, match="is at piece 1 of batch_x, not at 2, which 3 follows"):
        answers.append_once(TABLE, rows(3), WORK, 3, after=2)
    with pytest.raises(BadRequest, match="piece 2 of batch_x cannot come after piece 2"):
        answers.append_once(TABLE, rows(2), WORK, 2, after=2)
    assert answers.to_arrow(TABLE).num_rows == 1


def test_two_workers_and_another_writer_at_once_double_nothing(answers: Tables) -> None:
    def work(worker: int) -> None:
        for number in range(1, 11):
            try:
                answers.append_once(TABLE, rows(number), WORK, number, after=number - 1)
            except Conflict:  # the other one is ahead by more than a piece
                assert answers.position(TABLE, WORK) >= number

    def write(worker: int) -> None:
        for _ in range(10):
            answers.append(TABLE, rows(-1))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, 0), pool.submit(work, 1), pool.submit(write, 2)]:
            done.result()
    assert sorted(answers.to_arrow(TABLE)["n"].to_pylist()) == [-1] * 10 + list(range(1, 11))


def test_a_piece_is_in_its_runs_lineage_and_takes_modify(answers: Tables) -> None:
    catalog = answers._catalog
    run_id = catalog.start_run("batch_inference", TABLE, principal="admin")
    version = answers.acting(None, run_id).append_once(TABLE, rows(1), WORK, 1, after=0)
    assert [(edge.name, edge.version) for edge in catalog.get_run(run_id).outputs] == [(TABLE, version)]
    catalog.create_token("eve")
    with pytest.raises(PermissionDenied, match="'eve' may not"):
        answers.acting(Principal(name="eve")).append_once(TABLE, rows(2), WORK, 2, after=1)
