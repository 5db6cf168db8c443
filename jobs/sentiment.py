"""A classifier of one's own, from rated tweets to an endpoint whose answers can be followed back to them.

    ray job submit -- python jobs/sentiment.py

Start reading at `main`: each step is a function, in the order in which it happens. `sentiment_model.py` beside this
file is the plain PyTorch of it; the data and their licence are in `data/`.
"""

import argparse
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import ray
import sentiment_model as task
from ray import cloudpickle
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

import mosaic
from mosaic.catalog import ModelVersion
from mosaic.data.manifest import note_source
from mosaic.evaluation import proportion
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.settings import EngineSettings
from mosaic.training import Tracking
from mosaic.training.tracking import RunRecord

TABLE, SOURCES = "main.sentiment.tweets", "main.sentiment.source_files"
MODEL, BASE, ENDPOINT = "main.sentiment.classifier", "all-minilm-l6-v2", "sentiment"
SCHEMA = pa.schema(
    [
        pa.field("tweet_id", pa.int64(), nullable=False),
        ("rating", pa.float64()),
        ("label", pa.string()),
        ("text", pa.string()),
        ("held_out", pa.bool_()),
    ]
)
CLIENTS = 16


def main(arguments: argparse.Namespace) -> None:
    logging.getLogger("httpx").setLevel(logging.ERROR)
    platform = mosaic.init()
    _, token = platform.catalog.create_token("sentiment", kind="service", is_admin=False, comment="jobs/sentiment.py")
    say("1 Ingest: rated tweets into a Delta table")
    version = ingest(platform, arguments.tweets)
    say("2 Train: MiniLM with three labels, in a Ray task; recorded in MLflow")
    trained, offline, rows = train(platform, token, version, arguments)
    say(f"3 Register: {trained.full_name}, alias champion, made by run {trained.run_id}")
    say(f"4 Serve: endpoint {ENDPOINT!r}")
    serve(platform)
    say(f"5 Ask: {len(rows)} held-out tweets through the gateway, {CLIENTS} at a time")
    asked = ask(platform, token, [row["text"] for row in rows])
    report = figures(platform, trained, version, rows, offline, asked)
    arguments.report.write_text(json.dumps(report, indent=2, default=str))
    show(report, arguments.report)
    if report["same_labels"] != len(rows):
        raise SystemExit("the endpoint does not predict what the model predicts offline")


def ingest(platform: Platform, limit: int | None) -> int:
    """The table's version with these tweets; an ingestion of the same file is not repeated."""
    content = task.TWEETS.read_bytes()
    params = {"sha256": hashlib.sha256(content).hexdigest(), "tweets": limit or "all"}
    platform.catalog.ensure_schema("main.sentiment")
    if platform.catalog.find_table(TABLE) is not None:
        version = platform.tables.version(TABLE)
        if any(run.params == params for run in platform.catalog.runs_that_made("table", TABLE, version)):
            say(f"  reused: {TABLE} version {version}")
            return version
    owner = platform.principal.name
    run_id = platform.catalog.start_run("ingest", TABLE, principal=owner, params=params)
    platform.tables.create(TABLE, SCHEMA, primary_key="tweet_id", owner=owner, comment="Hutto and Gilbert, ICWSM-14.")
    file = {"uri": "tweets_ground_truth.tsv", "sha256": params["sha256"], "bytes": len(content)}
    files = pa.Table.from_pylist([{**file, "file": str(task.TWEETS)}])
    note_source(platform.tables, platform.catalog, run_id, "vader:tweets", files, manifest=SOURCES, owner=owner)
    rows = task.read_tweets(limit)
    version = platform.tables.overwrite(TABLE, pa.Table.from_pylist(rows, schema=SCHEMA), run_id=run_id)
    platform.catalog.finish_run(run_id, "finished")
    say(f"  {TABLE} version {version}: {len(rows):,} tweets, {dict(Counter(row['label'] for row in rows))}")
    return version


def train(
    platform: Platform, token: str, version: int, arguments: argparse.Namespace
) -> tuple[ModelVersion, list[list[float]], list[dict[str, Any]]]:
    """The registered version, and the held-out rows with what the model says of them offline."""
    params = {"base": BASE, "seed": 0, "epochs": arguments.epochs, "learning_rate": 1e-4, "batch_size": 16}
    record = RunRecord(
        Tracking(platform.mlflow_uri, lambda: token),
        experiment="sentiment",
        name=None,
        params=params,
        tables={"training": f"{TABLE}@{version}"},
    )
    catalog, who = platform.catalog, platform.principal
    run_id = catalog.start_run("training", MODEL, principal=who.name, params={**params, "table": f"{TABLE}@{version}"})
    catalog.add_input(run_id, "base_model", BASE, None)
    status = "failed"
    try:
        # Read within the run, so that the run's lineage has the table at this version.
        table = platform.tables.acting(who, run_id).to_arrow(TABLE, version).sort_by("tweet_id").to_pylist()
        rows = [row for row in table if row["held_out"]]
        training = [(row["text"], row["label"]) for row in table if not row["held_out"]]
        cloudpickle.register_pickle_by_value(task)  # goes to whichever node trains
        settings = {key: value for key, value in params.items() if key != "base"}
        learn = ray.remote(num_cpus=arguments.cpus, num_returns="streaming", max_retries=1)(task.fine_tune)
        told: dict[str, Any] = {}
        for reference in learn.remote(
            str(platform.models.resolve(BASE)),
            training,
            [row["text"] for row in rows],
            threads=os.cpu_count() or 1,
            **settings,
        ):
            told = ray.get(reference)
            if "loss" in told:
                record.log(told["epoch"], {"loss": told["loss"]})
                say(f"  epoch {told['epoch']} of {arguments.epochs}: loss {told['loss']:.3f}")
        right = sum(label == row["label"] for label, row in zip(labels(told["scores"]), rows, strict=True))
        record.log(arguments.epochs, {"held_out_accuracy": right / len(rows)})
        with tempfile.TemporaryDirectory() as folder:
            for name, content in told["files"].items():
                (Path(folder) / name).write_bytes(content)
            made = platform.models.register(MODEL, folder, alias="champion", run_id=run_id)
        status = "finished"
    finally:
        record.finish("FINISHED" if status == "finished" else "FAILED")
        catalog.finish_run(run_id, status, mlflow_run_id=record.run_id)  # type: ignore[arg-type]
    baseline = task.bag_of_words(training, [row["text"] for row in rows])
    return made, told["scores"], [{**row, "bag_of_words": word} for row, word in zip(rows, baseline, strict=True)]


def serve(platform: Platform) -> None:
    """One thread: a small model's batch is too small to be shared, and the gateway wants the other core."""
    entity = ServedEntity(name="minilm", model=f"{MODEL}@champion", engine=EngineSettings(num_cpus=0.2, threads=1))
    platform.serving.put(EndpointSettings(name=ENDPOINT, task="predict", served_entities=[entity]))
    platform.serving.wait(ENDPOINT)


def ask(platform: Platform, token: str, texts: list[str]) -> list[dict[str, Any]]:
    """A request for each text, as any client would make it."""
    url = f"{platform.base_url}/serving-endpoints/{ENDPOINT}/invocations"

    with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=120) as client:

        def one(text: str) -> dict[str, Any]:
            began = time.monotonic()
            answer = client.post(url, json={"inputs": [text]})
            answer.raise_for_status()
            (found,) = answer.json()["predictions"]
            return {**found, "request_id": answer.headers["x-request-id"], "seconds": time.monotonic() - began}

        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(one, texts))


def figures(
    platform: Platform,
    trained: ModelVersion,
    version: int,
    rows: list[dict[str, Any]],
    offline: list[list[float]],
    asked: list[dict[str, Any]],
) -> dict[str, Any]:
    """Accuracy with intervals, of the model and of what it has to beat; whether serving changed any prediction."""
    wanted = [row["label"] for row in rows]
    table = platform.tables.to_arrow(TABLE, version).to_pylist()
    (majority, _), *_ = Counter(row["label"] for row in table if not row["held_out"]).most_common(1)

    def accuracy(told: list[str]) -> dict[str, Any]:
        return proportion(sum(one == label for one, label in zip(told, wanted, strict=True)), len(wanted)).model_dump()

    platform.flush_ledger()
    drift = [
        max(abs(served["scores"][label] - score) for label, score in zip(task.LABELS, scores, strict=True))
        for served, scores in zip(asked, offline, strict=True)
    ]
    return {
        "model_version": trained.full_name,
        "table": f"{TABLE}@{version}",
        "accuracy": {
            "minilm": accuracy([one["label"] for one in asked]),
            "bag_of_words": accuracy([row["bag_of_words"] for row in rows]),
            "majority": accuracy([majority] * len(rows)),
        },
        "same_labels": sum(one["label"] == label for one, label in zip(asked, labels(offline), strict=True)),
        "largest_difference_of_a_probability": max(drift),
        "median_seconds": sorted(one["seconds"] for one in asked)[len(asked) // 2],
        "lineage": platform.why(asked[0]["request_id"]).model_dump(mode="json"),
    }


def labels(scores: list[list[float]]) -> list[str]:
    return [task.LABELS[row.index(max(row))] for row in scores]


def show(report: dict[str, Any], file: Path) -> None:
    console = Console(width=118, highlight=False, force_terminal=False)
    table = Table("", "accuracy [95 % interval]", title="Held-out tweets", title_justify="left")
    for name, one in report["accuracy"].items():
        value, low, high = (100 * one[key] for key in ("value", "low", "high"))
        table.add_row(name.replace("_", " "), f"{value:.1f} %  [{low:.1f}, {high:.1f}], n {one['n']}")
    console.print(table)
    count = report["accuracy"]["minilm"]["n"]
    say(f"Through the gateway {report['same_labels']} of {count} labels are those of the model offline; the largest")
    say(f"difference of a probability is {report['largest_difference_of_a_probability']:.1e}.")
    say(f"An answer came after {1000 * report['median_seconds']:.0f} ms (median, {CLIENTS} at a time).")
    console.print(tree(report["lineage"]))
    say(f"All figures: {file.resolve()}")


def tree(node: dict[str, Any]) -> Tree:
    """The thread from an answer back to the file of tweets."""
    drawn = Tree(node["label"])
    drawn.children.extend(tree(part) for part in node["came_from"])
    return drawn


def say(line: str) -> None:
    print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rated tweets to a served classifier.")
    parser.add_argument("--tweets", type=int, help="only so many of the tweets (default: all 4,200)")
    parser.add_argument("--epochs", type=int, default=4, help="times that training sees each tweet (default 4)")
    parser.add_argument("--cpus", type=float, default=0.4, help="logical CPUs that training reserves (default 0.4)")
    parser.add_argument("--report", type=Path, default=Path("sentiment.json"), help="where the figures go")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except mosaic.errors.MosaicError as error:
        Console(stderr=True).print(f"[red]sentiment: {error.message}")
        raise SystemExit(1) from error
