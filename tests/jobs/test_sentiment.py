"""jobs/sentiment.py on few of its tweets, as a user runs it: the same predictions through the gateway as offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import pytest
import sentiment_model as task

from mosaic.platform import Platform

JOB = Path(__file__).parents[2] / "jobs" / "sentiment.py"


def test_labels_are_the_nearest_whole_rating() -> None:
    ratings = (-4.0, -0.51, -0.5, -0.49, 0.0, 0.49, 0.5, 4.0)
    assert [task.label_of(rating)[:3] for rating in ratings] == ["neg"] * 3 + ["neu"] * 3 + ["pos"] * 2


def test_the_held_out_fifth_is_always_the_same_and_no_tweet_is_on_both_sides() -> None:
    tweets = task.read_tweets()
    assert len(tweets) == 4200 and sum(one["held_out"] for one in tweets) == 840
    assert tweets == task.read_tweets() and len({one["text"] for one in tweets}) == 4200
    assert not any("&amp;" in one["text"] for one in tweets)
    assert {one["label"] for one in tweets[:100] if one["held_out"]} == set(task.LABELS)


def test_words_that_tell_are_learned() -> None:
    training = [
        (f"{word} {n}", label) for n in range(30) for word, label in (("great", "positive"), ("awful", "negative"))
    ]
    assert task.bag_of_words(training, ["so great", "how awful"]) == ["positive", "negative"]


@pytest.mark.timeout(900)
@pytest.mark.long
def test_the_job_from_tweets_to_an_endpoint(platform: Platform, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(JOB), "--tweets", "200", "--epochs", "1", "--report", str(report)]
    environment = {**os.environ, "RAY_ADDRESS": platform.cluster.address}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        told = json.loads(report.read_text())
        assert told["same_labels"] == told["accuracy"]["minilm"]["n"] == 40
        assert told["largest_difference_of_a_probability"] < 1e-4
        assert told["accuracy"]["minilm"]["value"] >= 0.3
        version = platform.catalog.get_model_version("main.sentiment.classifier@champion")
        assert version.run_id is not None and version.kind == "classifier"
        run = platform.catalog.get_run(version.run_id)
        assert run.status == "finished" and run.mlflow_run_id is not None
        assert [(one.kind, one.name, one.version) for one in run.outputs] == [("model", version.model, version.version)]
        table = platform.tables.version("main.sentiment.tweets")
        assert ("table", "main.sentiment.tweets", table) in [(one.kind, one.name, one.version) for one in run.inputs]
        assert "vader:tweets" in json.dumps(told["lineage"])  # from an answer to the file it was learned from
    finally:
        platform.serving.delete("sentiment")
