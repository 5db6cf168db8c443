"""What `sentiment.py` learns with, and knows nothing of the platform: tweets, MiniLM with three labels, a baseline.

Tweets and ratings: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM-14 (data/README.md).
"""

import hashlib
import html
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LABELS = ("negative", "neutral", "positive")
TWEETS = Path(__file__).parent / "data" / "tweets_ground_truth.tsv"


def label_of(rating: float) -> str:
    """The mean rating's nearest whole number on the raters' scale, -4 to 4: 0 is neutral, the sign tells the rest."""
    return "neutral" if abs(rating) < 0.5 else "positive" if rating > 0 else "negative"


def read_tweets(limit: int | None = None) -> list[dict[str, Any]]:
    """The tweets in an order of their texts' digests, of which the first fifth is held out: always the same ones."""
    tweets = []
    for line in TWEETS.read_text(encoding="utf-8").splitlines():
        number, rating, text = line.split("\t")
        text = html.unescape(text).strip()
        tweets.append(
            {"tweet_id": int(number), "rating": float(rating), "label": label_of(float(rating)), "text": text}
        )
    tweets.sort(key=lambda tweet: hashlib.sha256(tweet["text"].encode()).digest())
    chosen = tweets[:limit]
    return [{**tweet, "held_out": place < len(chosen) // 5} for place, tweet in enumerate(chosen)]


def fine_tune(
    base: str,
    training: Sequence[tuple[str, str]],
    held_out: Sequence[str],
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Yields each epoch's mean loss, and at last the model's files and what they, read again, say of the held-out.

    A plain loop: AdamW, warm-up over the first tenth, then down to 0. The same seed, machine and threads give the same
    weights. Nothing is chosen by the held-out texts: the last epoch's weights are taken.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = {label: place for place, label in enumerate(LABELS)}
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(LABELS), id2label=dict(enumerate(LABELS)), label2id=ids
    )
    steps = epochs * -(-len(training) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for places in torch.randperm(len(training)).split(batch_size):
            chosen = [training[place] for place in places]
            batch = tokenizer([text for text, _ in chosen], padding=True, truncation=True, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor([ids[label] for _, label in chosen])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(chosen)
        yield {"epoch": epoch, "loss": total / len(training)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        yield {"files": files, "scores": classify(folder, held_out)}


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def classify(folder: str, texts: Sequence[str]) -> list[list[float]]:
    """The probability of each label, one text at a time, as transformers computes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return [one.softmax(-1).tolist() for one in logits]


def bag_of_words(training: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """What is to be beaten: logistic regression over the words and pairs of words that are in two texts or more.

    How strongly it is held back (L2) is chosen on a fifth of the training texts, then it learns from all of them.
    """
    torch.set_num_threads(1)  # so little to compute is slower when it is shared
    cut = len(training) // 5
    wanted = [label for _, label in training[:cut]]

    def right(weight: float) -> int:
        told = _logistic(training[cut:], [text for text, _ in training[:cut]], weight)
        return sum(one == label for one, label in zip(told, wanted, strict=True))

    return _logistic(training, texts, max((3e-4, 1e-3, 3e-3), key=right))


def _logistic(training: Sequence[tuple[str, str]], texts: Sequence[str], weight: float) -> list[str]:
    counts = Counter(term for text, _ in training for term in _terms(text))
    columns = {term: place for place, term in enumerate(sorted(one for one, count in counts.items() if count > 1))}

    def matrix(rows: Sequence[str]) -> torch.Tensor:
        features = torch.zeros(len(rows), len(columns))
        for number, text in enumerate(rows):
            features[number, [columns[term] for term in _terms(text) if term in columns]] = 1.0
        return features

    features, labels = matrix([text for text, _ in training]), torch.tensor([LABELS.index(one) for _, one in training])
    weights, bias = (
        torch.zeros(len(columns), len(LABELS), requires_grad=True),
        torch.zeros(len(LABELS), requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weights + bias, labels) + weight * (weights**2).sum()
        loss.backward()
        return loss

    optimizer.step(step)
    with torch.inference_mode():
        return [LABELS[place] for place in (matrix(texts) @ weights + bias).argmax(dim=1)]


def _terms(text: str) -> set[str]:
    words = re.findall(r"[\w']+|[^\w\s]+", text.lower())
    return {*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))}
