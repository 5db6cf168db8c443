"""Floor 0: errors that pickle and know their status, sortable ids, settings that say what is wrong."""

import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from mosaic import errors
from mosaic.errors import BadRequest, MosaicError, not_found
from mosaic.ids import is_id, new_id
from mosaic.settings import Settings

CLASSES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, MosaicError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_pickles_with_what_it_knows(cls: type[MosaicError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what was asked", param="field", code="reason")))
    assert type(error) is cls and str(error) == "what was asked"
    assert (error.param, error.code, error.status) == ("field", "reason", cls.status)


def test_the_tree_in_the_docstring_is_the_code() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("|", " ").replace("-", " ").replace("`", " ").split()
        if len(words) > 1 and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    assert drawn == {cls.__name__: cls.status for cls in CLASSES}


def test_not_found_lists_what_exists_and_not_too_much() -> None:
    assert str(not_found("endpoint", "gtp", ["gpt", "echo"])) == "no endpoint 'gtp'; there are ['echo', 'gpt']"
    assert str(not_found("table", "a", [])) == "no table 'a'; there is none that you may see"
    assert "... 480 more" in str(not_found("table", "a", [f"t{n}" for n in range(500)]))


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=20))
def test_ids_sort_by_time(times: list[int]) -> None:
    ids = [new_id("req", unix_milliseconds=moment) for moment in sorted(set(times))]
    assert ids == sorted(ids) and all(is_id(one, "req") for one in ids)


def test_ids_are_distinct_and_of_now() -> None:
    before, ids, after = int(time.time() * 1000), [new_id("run") for _ in range(10_000)], int(time.time() * 1000)
    assert len(set(ids)) == 10_000 and not is_id(ids[0], "req") and not is_id("run_short", "run")
    assert new_id("run", unix_milliseconds=before - 1) < ids[0] < new_id("run", unix_milliseconds=after + 1)
    with pytest.raises(ValueError, match="lower-case letters"):
        new_id("Run 1")


class Example(Settings):
    """Settings for these tests."""

    port: int = Field(default=1, ge=1)
    """A port."""


def test_settings_name_field_value_and_what_would_be_right() -> None:
    with pytest.raises(BadRequest, match=r"file.yaml: unknown field 'prot'; there are \['port'\]"):
        Example.parse({"prot": 1}, source="file.yaml")
    with pytest.raises(BadRequest, match=r"field 'port' = 0: input should be greater than or equal to 1") as error:
        Example.parse({"port": 0})
    assert error.value.param == "port"
    assert Example.model_fields["port"].description == "A port."
