"""Personal data and secrets: a shape for each type, in RE2, and presidio's recognizers to decide what has that shape.

The recognizers bring what a shape cannot say: the checksums of cards and IBANs, numbers that no authority gives out,
domains that exist, plans of telephone numbers. They see single candidates only, some dozen signs long, which is why
plain text costs one search, and why a stream decides as the whole text does. Recognizers of forms only: names of
people and places need a language model.

Importing presidio imports spaCy (its classes of results are spaCy's), 1.5 s and 94 MiB which only a guard with such a
rule should cost: `recognizers` does it when it is first called.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock
from typing import Any

from mosaic.gateway.guard_rules import Decide, Resume, Rule, Spans, next_sign, whole_candidate, within_word
from mosaic.serving.ai_gateway import Pii, PiiType

_LEAST_SCORE = 0.4
"""Presidio gives nine digits in a row 0.05 as a social security number, and 0.5 with its dashes."""
_COUNTRIES = ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR")
"""Whose telephone numbers are known without their country's code; with it all are."""
_PHONE_LENIENCY = 2
"""phonenumbers' STRICT_GROUPING; below it any digits and dashes pass that happen to be as many as a number has."""
_FRACTION = re.compile(r"\d*\.\d+")

_WORD = r"[0-9A-Za-z_\x{80}-\x{10FFFF}]"
_LOCAL = r"[0-9A-Za-z_%+'.\-\x{80}-\x{10FFFF}]"
_DOMAIN = r"[0-9A-Za-z_.\-\x{80}-\x{10FFFF}]"
_PHONE_GAP = r"[ \t().\-/]{0,3}"

_KEYS = (
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic (sk-ant-), OpenRouter and others
    r"[sr]k_live_[A-Za-z0-9]{16,}",  # Stripe
    r"gh[pousr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"A(?:KIA|SIA)[A-Z0-9]{16}\b",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"hf_[A-Za-z0-9]{30,}",
    r"dapi[a-f0-9]{32}(?:-\d)?",  # Databricks
    r"mosaic_[A-Za-z0-9_-]{20,}",
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # a JSON web token
)
_PEM_GAP = r"(?:\s|\\r|\\n){1,8}"
_PEM = (
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
    rf"(?:{_PEM_GAP}[A-Za-z0-9+/=]{{16,80}})*"
    rf"(?:(?:{_PEM_GAP}[A-Za-z0-9+/=]{{1,80}})?{_PEM_GAP}-----END [A-Z ]{{0,20}}PRIVATE KEY-----)?"
)

SHAPES: Mapping[PiiType, str] = {
    "CREDIT_CARD": r"\b\d(?:[ -]?\d){11,18}\b",
    "US_SSN": r"\b\d{3}[ .-]\d{2}[ .-]\d{4}\b",
    "EMAIL_ADDRESS": rf"{_WORD}{_LOCAL}{{0,63}}@{_WORD}{_DOMAIN}{{1,252}}",
    "PHONE_NUMBER": rf"(?:\+|\()?\b\d(?:{_PHONE_GAP}\d){{6,23}}\b",
    "IBAN_CODE": r"[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}",
    "IP_ADDRESS": r"\b\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,3})?\b"
    r"|(?:\b\w{1,4})?:(?:\w{0,4}:){2,40}[\w.%/]{0,64}",
    "API_KEY": rf"\b(?:{'|'.join(_KEYS)})|{_PEM}",
}
"""What each type may look like: all that is one has the shape, not all that has the shape is one."""

_RESUME: Mapping[PiiType, Resume] = {
    # phonenumbers looks for numbers inside of the candidate, and takes a millisecond.
    "PHONE_NUMBER": lambda text, start, end: end,
    # What is before the sign is no address whichever letter it begins with; what follows may be the next one's name.
    "EMAIL_ADDRESS": lambda text, start, end: text.index("@", start) + 1,
}


def pii_rules(pii: Pii) -> list[Rule]:
    """A rule for each type; imports presidio if one of them needs it."""
    blocks, fails_open = pii.behavior == "BLOCK", pii.on_failure == "open"
    return [
        Rule(kind, SHAPES[kind], blocks, fails_open, decide=_decide(kind), resume=_RESUME.get(kind, next_sign))
        for kind in pii.types
    ]


def _decide(kind: PiiType) -> Decide:
    if kind == "API_KEY":
        return whole_candidate
    decide = _decided_by(recognizers()[kind]())
    if kind == "IP_ADDRESS":
        return _outside_words(decide)
    return _no_fraction(decide) if kind == "PHONE_NUMBER" else decide


_IMPORTING = Lock()


def recognizers() -> Mapping[PiiType, Callable[[], Any]]:
    """Presidio's recognizers by type. The first call imports presidio; call it in a thread where others wait."""
    with _IMPORTING:  # the cache alone lets two that come at once both begin
        return _recognizers()


@cache
def _recognizers() -> Mapping[PiiType, Callable[[], Any]]:
    import tldextract

    with _as_if_missing("torch", "transformers"):
        from presidio_analyzer.predefined_recognizers import (
            CreditCardRecognizer,
            EmailRecognizer,
            IbanRecognizer,
            IpRecognizer,
            PhoneRecognizer,
            UsSsnRecognizer,
        )

    # Presidio's own extractor would fetch the list of public suffixes and write it to the home folder.
    domain_of = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class PackagedSuffixes(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domain_of(pattern_text).top_domain_under_public_suffix)

    return {
        "CREDIT_CARD": CreditCardRecognizer,
        "US_SSN": UsSsnRecognizer,
        "EMAIL_ADDRESS": PackagedSuffixes,
        "PHONE_NUMBER": partial(PhoneRecognizer, supported_regions=_COUNTRIES, leniency=_PHONE_LENIENCY),
        "IBAN_CODE": IbanRecognizer,
        "IP_ADDRESS": IpRecognizer,
    }


@contextmanager
def _as_if_missing(*modules: str) -> Iterator[None]:
    """Presidio and spaCy import these where they are installed, for language models that are not used here: 365 MiB.
    Nothing else in a gateway does."""
    hidden = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _decided_by(recognizer: Any) -> Decide:
    def decide(text: str, start: int, end: int) -> Spans:
        results = recognizer.analyze(text[start:end], recognizer.supported_entities, None)
        return sorted((start + result.start, start + result.end) for result in results if result.score >= _LEAST_SCORE)

    return decide


def _outside_words(decide: Decide) -> Decide:
    """For what may begin with a colon: `std::dead:beef` has no address in it."""
    return lambda text, start, end: [] if within_word(text, start) else decide(text, start, end)


def _no_fraction(decide: Decide) -> Decide:
    """0.301029996 has as many digits as a telephone number."""

    def without_fractions(text: str, start: int, end: int) -> Spans:
        found = decide(text, start, end)
        return [(s, e) for s, e in found if not any(map(_FRACTION.fullmatch, (text[s:e], text[max(0, s - 1) : e])))]

    return without_fractions
