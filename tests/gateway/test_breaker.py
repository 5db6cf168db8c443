"""When a provider is left alone: the breaker as a state machine, and the budget of retries."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mosaic.gateway.providers import Breaker, BreakerSettings, Pass, RetryBudget

DIALS = BreakerSettings(window_seconds=10, min_requests=4, failure_rate=0.5, open_seconds=5, credentials_seconds=50)


def tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker(DIALS)
    passes = [breaker.admit(now=now) for _ in range(4)]
    for given in passes:
        assert given is not None
        breaker.record(given, "failed", now=now)
    assert breaker.state(now=now) == "open"
    return breaker


def end(breaker: Breaker, outcome: str, now: float, retry_after_seconds: float | None = None) -> Pass:
    given = breaker.admit(now=now)
    assert given is not None
    breaker.record(given, outcome, now=now, retry_after_seconds=retry_after_seconds)  # type: ignore[arg-type]
    return given


def test_few_failures_open_nothing_and_old_ones_do_not_count() -> None:
    breaker = Breaker(DIALS)
    for now in (0.0, 1.0, 2.0):
        end(breaker, "failed", now)
    assert breaker.state(now=2.0) == "closed"
    end(breaker, "failed", 12.5)
    assert breaker.state(now=12.5) == "closed"


def test_a_share_of_failures_opens_and_one_probe_closes() -> None:
    breaker = Breaker(DIALS)
    for outcome in ("ok", "failed", "ok", "failed"):
        end(breaker, outcome, 0.0)
    assert (breaker.state(now=4.9), breaker.admit(now=4.9), breaker.open_seconds(now=4.0)) == ("open", None, 1.0)
    probe = breaker.admit(now=5.0)
    assert probe is not None and probe.is_probe and breaker.admit(now=5.0) is None
    breaker.record(probe, "ok", now=6.0)
    assert breaker.state(now=6.0) == "closed" and breaker.open_seconds(now=6.0) == 0.0
    end(breaker, "failed", 6.0)
    assert breaker.state(now=6.0) == "closed", "what was before the probe no longer counts"


def test_a_probe_that_fails_opens_again() -> None:
    breaker = tripped()
    end(breaker, "failed", 5.0)
    assert breaker.state(now=9.9) == "open" and breaker.state(now=10.0) == "half-open"


def test_a_probe_whose_client_goes_away_leaves_room_for_the_next() -> None:
    breaker = tripped()
    end(breaker, "unrelated", 5.0)
    assert breaker.state(now=5.0) == "half-open" and breaker.admit(now=5.0) is not None


def test_a_probe_that_never_ends_is_given_up_and_its_late_end_does_not_count() -> None:
    breaker = tripped()
    lost = breaker.admit(now=5.0)
    assert lost is not None and breaker.admit(now=64.9) is None
    second = breaker.admit(now=65.0)
    assert second is not None and second.is_probe
    breaker.record(lost, "ok", now=66.0)
    assert breaker.state(now=66.0) == "half-open"
    breaker.record(second, "ok", now=66.0)
    assert breaker.state(now=66.0) == "closed"


def test_requests_from_before_it_opened_say_nothing_after() -> None:
    breaker = Breaker(DIALS)
    late = breaker.admit(now=0.0)
    assert late is not None
    for _ in range(4):
        end(breaker, "failed", 0.0)
    breaker.record(late, "ok", now=5.0)
    assert breaker.state(now=5.0) == "half-open"


def test_a_wait_is_kept_as_long_as_the_longest_and_is_not_ill_health() -> None:
    breaker = Breaker(DIALS)
    passes = [breaker.admit(now=0.0) for _ in range(8)]
    for given, seconds in zip(passes, (9.0, 2.0, 1.0, None, 3.0, 0.0, 2.0, 1.0), strict=True):
        assert given is not None
        breaker.record(given, "rate_limited", now=0.0, retry_after_seconds=seconds)
    assert breaker.state(now=8.9) == "open" and breaker.state(now=9.0) == "closed"
    given = breaker.admit(now=9.0)
    assert given is not None and not given.is_probe


def test_a_probe_that_is_asked_to_wait_found_a_provider_that_is_well() -> None:
    breaker = tripped()
    end(breaker, "rate_limited", 5.0, 2.0)
    assert breaker.state(now=6.9) == "open" and breaker.state(now=7.0) == "closed"


def test_a_refused_key_opens_at_once_and_for_longer() -> None:
    breaker = Breaker(DIALS)
    end(breaker, "credentials", 0.0)
    assert breaker.state(now=49.9) == "open" and breaker.state(now=50.0) == "half-open"


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: one probe at a time, no request while it is open, and it opens only for a
    reason."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(DIALS)
        self.now = 0.0
        self.out: list[Pass] = []
        self.probe: tuple[Pass, float] | None = None
        self.rests_until = 0.0
        self.bad = 0

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 5.0, 11.0, 61.0]))  # sums of these are exact
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        state = self.breaker.state(now=self.now)
        given = self.breaker.admit(now=self.now)
        if given is None:
            assert state != "closed"
            return
        assert state != "open" and given.is_probe is (state == "half-open")
        if given.is_probe:
            assert self.probe is None or self.now >= self.probe[1], "two probes at a time"
            self.probe = (given, self.now + DIALS.probe_seconds)
        self.out.append(given)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "failed", "rate_limited", "credentials", "unrelated"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        given = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        seconds = data.draw(st.sampled_from([None, 0.5, 7.0])) if outcome == "rate_limited" else None
        before = self.breaker.state(now=self.now)
        self.breaker.record(given, outcome, now=self.now, retry_after_seconds=seconds)  # type: ignore[arg-type]
        self.bad += outcome in ("failed", "credentials")
        if seconds is not None:
            self.rests_until = max(self.rests_until, self.now + seconds)
        if self.probe is not None and given == self.probe[0]:
            self.probe = None
        if outcome == "ok" and before == "closed":
            # A success among failures may be the request that makes their window large enough.
            assert self.breaker.state(now=self.now) == "closed" or self.bad
        if outcome == "unrelated":
            assert self.breaker.state(now=self.now) == before

    @invariant()
    def never_asked_while_it_rests(self) -> None:
        if self.now < self.rests_until:
            assert self.breaker.state(now=self.now) == "open" and self.breaker.admit(now=self.now) is None

    @invariant()
    def open_only_after_something_bad(self) -> None:
        if self.breaker.state(now=self.now) != "closed":
            assert self.bad or self.now < self.rests_until

    @invariant()
    def it_always_comes_back(self) -> None:
        later = self.now + self.breaker.open_seconds(now=self.now)
        assert self.breaker.state(now=later) != "open"


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase


def test_retries_are_a_share_of_the_requests_with_a_few_at_least() -> None:
    budget = RetryBudget(share=0.2, window_seconds=10, floor=3)
    assert [budget.take(now=0.0) for _ in range(5)] == [True, True, True, False, False]
    for _ in range(100):
        budget.note_request(now=5.0)
    assert sum(budget.take(now=5.0) for _ in range(100)) == 17, "a fifth of 100, less the three before"
    assert [budget.take(now=16.0) for _ in range(5)].count(True) == 3, "what is past counts no more"


@pytest.mark.parametrize("requests", [0, 10, 1000])
def test_retries_never_pass_their_share(requests: int) -> None:
    budget = RetryBudget()
    for number in range(requests):
        budget.note_request(now=number / 1000)
    taken = sum(budget.take(now=1.0) for _ in range(2000))
    assert taken == max(3, requests // 5)
