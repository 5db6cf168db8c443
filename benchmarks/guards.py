"""What guardrails cost, and how often they find personal data in text that has none.

    python -m benchmarks.guards

Texts: 5,000 real sentences, 2,500 of them tweets (jobs/data) and the rest of the standard library's documentation. What
is found there was not meant as a secret; it is printed, to be looked at: some of it is one (an address of an author).
"""

import html
import importlib
import inspect
import pkgutil
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from mosaic.errors import ContentFiltered
from mosaic.gateway.guards import Guard, prepare
from mosaic.serving.ai_gateway import PII_TYPES, GuardrailRules, Pattern, Pii

ROUNDS, SENTENCES, SHOWN = 5, 5000, 6
TWEETS = Path(__file__).parent.parent / "jobs" / "data" / "tweets_ground_truth.tsv"
KEYWORDS = ("confidential", "internal use only", "project aurora")
PATTERN = Pattern(name="ticket", regex=r"\b[A-Z]{2,10}-\d{1,6}\b", behavior="MASK")
DENSE = (
    "Ann (ann.lee@example.com, 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00) called +1 212-555-0123 from 10.1.2.3. "
)


def main() -> None:
    sentences = [*tweets(SENTENCES // 2), *documentation(SENTENCES - SENTENCES // 2)]
    before, started = memory_mib(), time.perf_counter()
    prepare()
    print(f"importing presidio: {time.perf_counter() - started:.1f} s, {memory_mib() - before:.0f} MiB", flush=True)

    guards = {kind: Guard(GuardrailRules(pii=Pii(behavior="MASK", types=(kind,)))) for kind in PII_TYPES}
    guards["invalid_keywords"] = Guard(GuardrailRules(invalid_keywords=KEYWORDS))
    guards["a pattern"] = Guard(GuardrailRules(patterns=(PATTERN,)))
    guards["all types"] = Guard(GuardrailRules(pii=Pii(behavior="MASK")))

    print(f"{len(sentences)} sentences, {statistics.mean(map(len, sentences)):.0f} characters on average")
    for name, guard in guards.items():
        changed = [(text, masked) for text in sentences if (masked := checked(guard, text)) != text]
        print(f"{name}: {len(changed)} of {len(sentences)} sentences have something found")
        for text, masked in changed[:SHOWN]:
            print(f"    {around(text, masked)}")

    plain, dense = (
        300 * ["It is plain text, and says little; 12 of 30 would agree. " * 5 + "So be it."],
        300 * [DENSE * 3],
    )
    for name, guard in guards.items():
        rates = [
            f"{what} {median_and_range([len(texts) / timed(check_all, guard, texts) for _ in range(ROUNDS)])}"
            for what, texts in (("plain", plain), ("dense", dense))
            if not (what == "dense" and name == "invalid_keywords")
        ]
        print(f"{name}: texts of about 300 characters per second: {', '.join(rates)}")

    for name, guard in guards.items():
        kept = [text for text in sentences[:400] if checked(guard, text)]
        pieces = [re.findall(r"\s*\S{1,6}", text) for text in kept]
        count = sum(map(len, pieces))
        micros = [timed(stream_all, guard, pieces) / count * 1e6 for _ in range(ROUNDS)]
        print(f"{name}: microseconds per streamed chunk of up to 7 characters: {median_and_range(micros)}")


def checked(guard: Guard, text: str) -> str:
    try:
        return guard.check(text, guard.findings())
    except ContentFiltered:
        return ""


def check_all(guard: Guard, texts: list[str]) -> None:
    for text in texts:
        checked(guard, text)


def stream_all(guard: Guard, texts: list[list[str]]) -> None:
    for pieces in texts:
        stream = guard.stream(guard.findings())
        for piece in pieces:
            stream.feed(piece)
        stream.end()


def timed(call: Callable[..., None], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def around(text: str, masked: str) -> str:
    """Where the two first differ, in context."""
    at = next(n for n, (one, other) in enumerate(zip(text, masked + "\0" * len(text), strict=False)) if one != other)
    return f"{text[max(0, at - 30) : at + 50]!r}"


def tweets(count: int) -> list[str]:
    lines = TWEETS.read_text(encoding="utf-8").splitlines()
    return [html.unescape(line.split("\t")[2]) for line in lines][:count]


def documentation(count: int) -> list[str]:
    """Sentences of the standard library's docstrings, each once."""
    sentences: dict[str, None] = {}
    for text in docstrings():
        sentences |= dict.fromkeys(one for one in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if len(one) > 20)
        if len(sentences) >= count:
            break
    return list(sentences)[:count]


def docstrings() -> Iterator[str]:
    for module in pkgutil.iter_modules():
        if module.name not in sys.stdlib_module_names or module.name in ("antigravity", "this", "idlelib", "test"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = importlib.import_module(module.name)
        except ImportError:  # for another system
            continue
        members = [loaded, *vars(loaded).values()]
        members += [method for one in members if inspect.isclass(one) for method in vars(one).values()]
        yield from (text for one in members if isinstance(text := getattr(one, "__doc__", None), str))


if __name__ == "__main__":
    main()
