"""The quickstart's task holds what it says: no question names its entry, modules are split, the style can be told."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import quickstart_questions as task

from mosaic.data.pydoc import entries


@pytest.fixture(scope="module")
def asked() -> list[dict]:
    modules = ["json", "math", "os.path", "statistics", "heapq", "bisect", "shutil", "pathlib", "zipfile", "csv"]
    return task.questions([entry for module in modules for entry in entries(module)])


def test_questions_never_contain_the_name_and_are_many(asked: list[dict]) -> None:
    assert len(asked) > 40
    for one in asked:
        last = one["entry"]["entry_id"].rpartition(".")[2].lower()
        words = one["question"].lower().replace("?", " ").replace(",", " ").split()
        assert last not in words and not task.contains_name(one["question"], one["entry"]["entry_id"])


def test_a_name_is_recognised_in_any_spelling() -> None:
    assert task.contains_name("How do I split_ext a path?", "os.path.splitext")
    assert task.contains_name("Which Path has it?", "pathlib.Path.exists")
    assert not task.contains_name("How do I cut a name?", "os.path.splitext")


def test_a_module_is_on_one_side_only(asked: list[dict]) -> None:
    sides: dict[str, set[bool]] = {}
    for one in asked:
        sides.setdefault(one["entry"]["module"].partition(".")[0], set()).add(one["held_out"])
    assert all(len(side) == 1 for side in sides.values()) and {True} in sides.values() and {False} in sides.values()


def test_the_wanted_answers_are_in_house_style_and_name_their_entry(asked: list[dict]) -> None:
    for one in asked:
        answer = task.house_style(one["entry"])
        assert task.is_house_style(answer) and task.names_entry(answer, one["entry"]["entry_id"])


@pytest.mark.parametrize(
    "answer",
    [
        "Use json.loads. It parses.\n\nSource: [json.loads]",
        "Use `json.loads`. It parses.\n\nSource: [json.dumps]",
        "Use `json.loads`. It parses.",
        "Sure! Use `json.loads`. It parses.\n\nSource: [json.loads]",
    ],
)
def test_other_answers_are_not(answer: str) -> None:
    assert not task.is_house_style(answer)


@given(st.text(max_size=60))
def test_naming_needs_the_whole_name(noise: str) -> None:
    assert task.names_entry("see `json.loads`.", "json.loads")
    assert not task.names_entry("see `json.loads_all`", "json.loads")
    assert not task.names_entry("see ujson.loads", "json.loads")
    task.is_house_style(noise)  # never raises
