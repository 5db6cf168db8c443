"""The quickstart's task: questions about the Python reference, answers in one house style, derived from the table's
rows.

A question is made from an entry's summary and never contains the entry's name; the split is by module, so that a
held-out question is about a module of which nothing was trained on.
"""

import re
from hashlib import sha256
from typing import Any

from mosaic.serving.endpoint import Retrieval

HELD_OUT_PERCENT = 15
SYSTEM_PROMPT = "You answer questions about the Python standard library from the reference entries given."
HOUSE_STYLE = re.compile(r"Use `(?P<name>[\w.]+)`\. (?P<what>[^\n]+)\n\nSource: \[(?P=name)\]")

TEMPLATES = (
    "How do I {task}?",
    "Which part of the standard library should I use to {task}?",
    "I want to {task}. What is there for it?",
)
_VERB_LIST = """
    accept acquire add append apply assert attach bind build calculate call cancel change check clear close
    combine compare compile compress compute connect construct convert copy count create decode decompress
    define delete determine disable discard display divide download dump emit enable encode encrypt end ensure
    enter escape evaluate execute exit extract fetch fill filter find finish flush force format generate get
    give handle identify indicate initialize insert install invert iterate join kill list load locate lock log
    look make map mark match merge modify move multiply normalize notify obtain open pack parse pass perform pop
    prepare print process produce put query quote raise read receive record reduce register release remove
    rename render replace report reset resolve restore retrieve return reverse round run save scan search seek
    select send serialize set shift show shut sleep sort split start stop store strip subtract swap switch
    synchronize tell terminate test transfer transform translate truncate try unlock unpack update use validate
    verify wait walk wrap write yield
"""
VERBS = frozenset(_VERB_LIST.split())


def retrieval(index: str, num_results: int = 3) -> Retrieval:
    """What the assistant looks up, and how the model sees it; training renders its prompts with the same object."""
    return Retrieval(
        index=index,
        num_results=num_results,
        system_prompt=SYSTEM_PROMPT,
        entry_template="- `{entry_id}`: {summary}",
        prompt_template="Reference:\n{entries}\n\nQuestion: {question}",
    )


def house_style(entry: dict[str, Any]) -> str:
    """The answer that is wanted for a question about this entry."""
    return f"Use `{entry['entry_id']}`. {sentence(entry['summary'])}\n\nSource: [{entry['entry_id']}]"


def is_house_style(answer: str) -> bool:
    return HOUSE_STYLE.fullmatch(answer.strip()) is not None


def names_entry(answer: str, entry_id: str) -> bool:
    """Whether the answer names that entry, in whatever style (so that the base model has its chance)."""
    return re.search(rf"(?<![\w.]){re.escape(entry_id)}(?![\w]|\.\w)", answer) is not None


def questions(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One question for each entry that allows one: {question, entry, held_out}, in the order of the entries.

    An entry allows one if its summary says what it does, says it of no other entry, and can be asked without its name.
    """
    times: dict[str, int] = {}
    for entry in entries:
        times[entry["summary"] or ""] = times.get(entry["summary"] or "", 0) + 1
    asked = []
    for entry in entries:
        question = ask(entry) if times[entry["summary"] or ""] == 1 else None
        if question is not None:
            asked.append({"question": question, "entry": entry, "held_out": is_held_out(entry["module"])})
    return asked


def ask(entry: dict[str, Any]) -> str | None:
    """The question for one entry, or None."""
    summary = entry["summary"] or ""
    if entry["kind"] not in ("function", "method", "class") or not 25 <= len(summary) <= 140 or "`" in summary:
        return None
    first, _, rest = summary.rstrip(".!?: ").partition(" ")
    verb = first.lower()
    verb = verb if verb in VERBS else verb.removesuffix("s") if verb.removesuffix("s") in VERBS else ""
    if not verb or not rest:
        return None
    template = TEMPLATES[_number(entry["entry_id"]) % len(TEMPLATES)]
    question = template.format(task=f"{'get' if verb == 'return' else verb} {rest}")
    return None if contains_name(question, entry["entry_id"]) else question


def contains_name(question: str, entry_id: str) -> bool:
    """Whether a part of the entry's name stands in the question as a word, in any spelling (`splitext`,
    `split_ext`)."""
    plain = {word.replace("_", "").lower() for word in re.findall(r"\w+", question)}
    own = entry_id.split(".")[1:] or [entry_id]
    return any(part.replace("_", "").lower() in plain for part in own)


def is_held_out(module: str) -> bool:
    """The split: by top-level module, from its name alone, so that it is the same on every machine."""
    return _number(module.partition(".")[0]) % 100 < HELD_OUT_PERCENT


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _number(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8])
