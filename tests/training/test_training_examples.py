"""Masks: exactly the assistant's words and its end of turn are learned; whatever does not fit is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mosaic.errors import BadRequest
from mosaic.training import TrainSettings
from mosaic.training.examples import TooLong, chat_of, encode

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "It is 6."},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def learned(tokenizer: Any, ids: list[int], supervised: list[bool]) -> str:
    return str(tokenizer.decode([token for token, on in zip(ids, supervised, strict=True) if on]))


def test_only_the_assistant_is_learned(tokenizer: Any) -> None:
    example = encode(tokenizer, CHAT, max_length=500, too_long="error")
    assert learned(tokenizer, example.ids, example.supervised) == "4<|im_end|>It is 6.<|im_end|>"
    assert example.ids == tokenizer(tokenizer.apply_chat_template(CHAT, tokenize=False))["input_ids"]


words = st.text(st.characters(codec="utf-8", exclude_characters="<|>\r"), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_any_text_is_learned_whole(tokenizer: Any, turns: list[tuple[str, str]]) -> None:
    chat = []
    for question, answer in turns:
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    example = encode(tokenizer, chat, max_length=5000, too_long="error")
    expected = [token for _, answer in turns for token in (*tokenizer(answer)["input_ids"], 2)]
    assert [token for token, on in zip(example.ids, example.supervised, strict=True) if on] == expected


def test_too_long(tokenizer: Any) -> None:
    whole = encode(tokenizer, CHAT, max_length=500, too_long="error")
    for policy in ("error", "drop"):
        with pytest.raises(TooLong, match=f"{len(whole.ids)} tokens are over max_length = {len(whole.ids) - 3}"):
            encode(tokenizer, CHAT, max_length=len(whole.ids) - 3, too_long=policy)
    cut = encode(tokenizer, CHAT, max_length=len(whole.ids) - 3, too_long="truncate")
    assert cut.was_truncated and cut.ids == whole.ids[:-3]
    with pytest.raises(BadRequest, match="no token of the assistant's is left"):
        encode(tokenizer, CHAT, max_length=8, too_long="truncate")


def test_a_template_that_changes_earlier_turns_is_refused(tokenizer: Any) -> None:
    class Rewriting:
        def apply_chat_template(
            self, chat: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
        ) -> str:
            return f"{len(chat)} messages: {chat}"

    with pytest.raises(BadRequest, match="does not render message 2"):
        encode(Rewriting(), CHAT, max_length=500, too_long="error")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "must be a list"),
        ({"messages": []}, "must be a list"),
        ({"messages": "hello"}, "must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0 has role 'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, r"message 0 \(user\) must have text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "last message must be the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "first message must not be"),
    ],
)
def test_what_is_no_chat_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        chat_of(row, ("messages",))


def test_prompt_and_response() -> None:
    chat = chat_of({"q": "2+2?", "a": "4"}, ("q", "a"))
    assert chat == [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_table": "main.docs.chats"}, "must name a table at a version"),
        ({"messages_column": None}, "give messages_column, or both"),
        ({"prompt_column": "q"}, "need messages_column = None"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"zero_stage": 5}, "zero_stage"),
        ({"learningrate": 1}, "unknown field 'learningrate'"),
        ({"lora": {"rank": 0}}, "lora.rank"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        TrainSettings.parse({"model": "tiny", "train_table": "main.docs.chats@0", **change})
