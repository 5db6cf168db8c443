"""From a row of a table to token ids and the mask of those to learn: only what the assistant said.

The mask comes from the model's own chat template: the text of messages[:i] with the generation prompt, against the
text of messages[:i+1]. The difference is what the model would have had to say. Templates differ in ways that silently
leave a mask empty or shifted, so whatever does not fit is an error, which the caller completes with the row's number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mosaic.errors import BadRequest

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """A row ready to train on."""

    ids: list[int]
    supervised: list[bool]
    """For each token, whether predicting it is learned."""
    was_truncated: bool = False

    @property
    def num_supervised(self) -> int:
        return sum(self.supervised)


class TooLong(BadRequest):
    """A row over `max_length`, where the policy is not to cut it."""


def chat_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, str]]:
    """The chat in a row: its messages, or its prompt and response; raises BadRequest for what is no chat."""
    if len(columns) == 2:
        messages = [{"role": "user", "content": row[columns[0]]}, {"role": "assistant", "content": row[columns[1]]}]
    else:
        messages = row[columns[0]]
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise BadRequest(
                f"{columns[0]!r} must be a list of {{role, content}}, not {_short(messages)}", param=columns[0]
            )
    chat = []
    for place, message in enumerate(messages):
        where = f"message {place}"
        if not isinstance(message, Mapping):
            raise BadRequest(f"{where} must be {{role, content}}, not {_short(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadRequest(f"{where} has role {role!r}; there are {list(ROLES)}")
        if not isinstance(content, str) or not content:
            raise BadRequest(f"{where} ({role}) must have text as its content, not {_short(content)}")
        chat.append({"role": role, "content": content})
    if chat[0]["role"] == "assistant":
        raise BadRequest("the first message must not be the assistant's: there is nothing to answer")
    if chat[-1]["role"] != "assistant":
        raise BadRequest(f"the last message must be the assistant's, not the {chat[-1]['role']}'s")
    return chat


def encode(
    tokenizer: Any, chat: list[dict[str, str]], *, max_length: int, too_long: Literal["error", "truncate", "drop"]
) -> Example:
    """Token ids and mask of a chat; raises BadRequest if nothing is left to learn, TooLong as the policy says."""
    text = _render(tokenizer, chat, prompt=False)
    spans = _assistant_spans(tokenizer, chat, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    supervised = [
        any(start <= first and last <= end for start, end in spans) for first, last in encoded["offset_mapping"]
    ]
    _stop_at_end_of_turn(ids, supervised, tokenizer.eos_token_id)
    was_truncated = len(ids) > max_length
    if was_truncated:
        if too_long != "truncate":
            raise TooLong(f"{len(ids)} tokens are over max_length = {max_length}", param="max_length")
        ids, supervised = ids[:max_length], supervised[:max_length]
    # The first token has nothing before it to be predicted from.
    if not any(supervised[1:]):
        raise BadRequest(
            "no token of the assistant's is left to learn from" + (" after truncation" if was_truncated else "")
        )
    return Example(ids, [False, *supervised[1:]], was_truncated)


def _assistant_spans(tokenizer: Any, chat: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
    spans = []
    for place, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, chat[:place], prompt=True)
        after = _render(tokenizer, chat[: place + 1], prompt=False)
        if not (text.startswith(after) and after.startswith(before)):
            raise BadRequest(
                f"the chat template does not render message {place} (assistant) as a continuation of the messages "
                "before it, so its tokens cannot be told apart"
            )
        spans.append((len(before), len(after)))
    return spans


def _stop_at_end_of_turn(ids: list[int], supervised: list[bool], eos: int | None) -> None:
    """Within each span, do not learn what the template puts after the end-of-turn token: nobody generates it."""
    ended = False
    for place, token in enumerate(ids):
        if not supervised[place]:
            ended = False
        elif ended:
            supervised[place] = False
        elif token == eos:
            ended = True


def _render(tokenizer: Any, chat: list[dict[str, str]], *, prompt: bool) -> str:
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
