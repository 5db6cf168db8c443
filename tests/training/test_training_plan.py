"""The plan: every row once an epoch, the same order for any number of workers, equal work on all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.training.plan import DUMMY, Plan

sizes = st.integers(min_value=1, max_value=60)


def plans(workers: st.SearchStrategy[int] = sizes) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        rows=st.integers(1, 300),
        batch=sizes,
        workers=workers,
        micro_batch=st.integers(1, 9),
        epochs=st.integers(1, 3),
        seed=st.integers(0, 2**63 - 1),
        window_rows=st.integers(1, 400),
    )


@given(plans())
def test_every_row_once_per_epoch(plan: Plan) -> None:
    for epoch in range(plan.epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.slots(step) for step in steps])
        assert sorted(seen[seen != DUMMY]) == list(range(plan.rows))


@given(plans(), sizes)
def test_a_step_has_the_same_rows_for_any_number_of_workers(plan: Plan, workers: int) -> None:
    other = Plan(plan.rows, plan.batch, workers, plan.micro_batch, plan.epochs, None, plan.seed, plan.window_rows)
    assert other.steps == plan.steps
    for step in (0, plan.steps - 1):
        ours, theirs = plan.slots(step), other.slots(step)
        assert sorted(ours[ours != DUMMY]) == sorted(theirs[theirs != DUMMY]) == sorted(plan.step_rows(step))


@given(plans())
def test_workers_have_equal_places_and_share_out_a_short_batch(plan: Plan) -> None:
    step = plan.steps - 1
    parts = [plan.worker_slots(step, rank) for rank in range(plan.workers)]
    assert {len(part) for part in parts} == {plan.slots_per_worker}
    assert np.array_equal(np.concatenate(parts), plan.slots(step))
    real = [int((part != DUMMY).sum()) for part in parts]
    assert max(real) - min(real) <= 1
    assert plan.micro_steps * plan.micro_batch >= plan.slots_per_worker


@given(plans())
def test_rows_stay_in_their_window(plan: Plan) -> None:
    order = plan.order(0)
    windows = order // plan.window_rows
    assert 1 + int((np.diff(windows) != 0).sum()) == len(set(windows.tolist()))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    plan = Plan(rows=50, batch=8, workers=2, micro_batch=2, epochs=2, seed=3)
    assert not np.array_equal(plan.order(0), plan.order(1))
    assert not np.array_equal(plan.order(0), Plan(50, 8, 2, 2, seed=4).order(0))
    assert np.array_equal(plan.order(1), Plan(50, 8, 5, 1, seed=3).order(1))


def test_chunks_cover_the_steps_from_the_cursor() -> None:
    plan = Plan(rows=100, batch=3, workers=2, micro_batch=2, max_steps=30)
    assert [step for chunk in plan.chunks(7, 4) for step in chunk] == list(range(7, 30))


def test_a_plan_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1"):
        Plan(rows=0, batch=1, workers=1, micro_batch=1)
