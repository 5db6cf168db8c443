"""The whole product in one script: documents become a governed, fine-tuned, served, retrieving, logged assistant.

    ray job submit -- python jobs/quickstart.py

Start reading at `main`: each step is a function, in the order in which it happens. `quickstart_questions.py` beside
this file says what is asked and what a good answer is, `quickstart_report.py` how the figures are shown.
"""

import argparse
import hashlib
import json
import logging
import platform as machine
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import quickstart_questions as task
import ray
from openai import OpenAI
from quickstart_report import bar, print_report, say
from ray.data.expressions import col
from rich.console import Console

import mosaic
from mosaic.data.manifest import note_source
from mosaic.data.pydoc import entry_schema, module_names, read_modules, source_files
from mosaic.evaluation import loss_reduction, mean_loss, proportion
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.training import FineTuned, LoraSettings, TrainSettings
from mosaic.vector import IndexSettings

ENTRIES, REJECTED = "main.stdlib.entries", "main.stdlib.rejected_modules"
SOURCES = "main.stdlib.source_files"
ENTRY_COLUMNS = ["entry_id", "module", "kind", "summary"]
TRAIN, HELD_OUT = "main.stdlib.train", "main.stdlib.held_out"
INDEX, MODEL = "main.stdlib.entries_index", "main.stdlib.assistant"
BASE, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
ARMS = {"base": BASE, "tuned": f"{MODEL}@champion"}

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        ("module", pa.string()),
        ("question", pa.string()),
        ("messages", MESSAGES),
    ]
)


def main(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    quiet()
    platform = mosaic.init()
    seconds: dict[str, float] = {}
    with peak_memory() as memory:
        with timed(seconds, "ingest", "1 Ingest: the Python standard library's reference into a Delta table"):
            start_embedder(platform)  # comes up beside
            ingested = ingest(platform)
        with timed(seconds, "index", "2 Index: embeddings by a Serve deployment, an index that follows the table"):
            indexed = index(platform)
        with timed(seconds, "examples", "  Questions from the same table; the split is by module"):
            questions = examples(platform, arguments)
        with timed(seconds, "train", "3 Train: LoRA with DeepSpeed ZeRO-2 on two Ray Train workers"):
            serve_alone(platform, "base")  # its engine comes up beside
            tuned = train(platform, arguments)
        say(f"4 Register: {tuned.version.full_name}, alias champion, made by run {tuned.version.run_id}")
        with timed(seconds, "serve", "5 Serve: base and tuned on one vLLM engine, half of the traffic each"):
            serve_endpoints(platform)
        with timed(seconds, "ask", "6 Ask: held-out questions, streamed, through the gateway"):
            asked = ask(platform, questions[: arguments.questions])
        with timed(seconds, "report", "7 Report"):
            hits = hit_rates(platform, questions)
            served = ledger_figures(platform)
            shown = next((one for one in asked["split"] if one["served_entity"] == "tuned"), asked["split"][0])
            thread = platform.why(shown["request_id"])
            entry = shown["retrieved"]["ids"][0]
            affected = platform.impact(ENTRIES, where=f"entry_id = '{entry}'")
    report = {
        "mosaic": mosaic.__version__,
        "ingest": ingested,
        "index": indexed,
        "retrieval": hits,
        "training": training_figures(tuned),
        "answers": answer_figures(asked),
        "gateway": served,
        "engine": {"output_tokens_per_second": asked["tokens_per_second"]},
        "lineage": thread.model_dump(mode="json"),
        "impact": affected.model_dump(mode="json"),
        "seconds": {**seconds, "total": time.monotonic() - started},
        "peak_memory_bytes": memory["peak"],
    }
    arguments.report.write_text(json.dumps(report, indent=2, default=str))
    print_report(report, platform, arguments.report)


def ingest(platform: Platform) -> dict[str, Any]:
    """Docstrings of every importable module, through Ray Data; a module that cannot be imported goes to quarantine."""
    modules = module_names()
    params = {"python": machine.python_version(), "modules": hashlib.sha256(" ".join(modules).encode()).hexdigest()}
    platform.catalog.ensure_schema("main.stdlib")
    known = platform.catalog.find_table(ENTRIES)
    if known is not None:
        version = platform.tables.version(ENTRIES)
        if any(run.params == params for run in platform.catalog.runs_that_made("table", ENTRIES, version)):
            rows = platform.tables.delta(ENTRIES).count()
            say(f"  reused: {ENTRIES} version {version} already holds {rows:,} entries of Python {params['python']}")
            return {"rows": rows, "rejected_modules": platform.tables.delta(REJECTED).count(), "reused": True}

    run_id = platform.catalog.start_run("ingest", ENTRIES, principal=platform.principal.name, params=params)
    good = pa.schema([field for field in entry_schema() if field.name != "error"])
    platform.tables.create(
        ENTRIES,
        good,
        primary_key="entry_id",
        owner=platform.principal.name,
        comment="Docstrings of the standard library.",
    )
    platform.tables.create(REJECTED, entry_schema(), primary_key="entry_id", owner=platform.principal.name)
    rows = read_modules(modules).sort("entry_id").materialize()
    entries = rows.filter(expr=col("error").is_null(), num_cpus=0.25).drop_columns(["error"], num_cpus=0.25)
    rejected = rows.filter(expr=col("error").is_not_null(), num_cpus=0.25)
    note_source(
        platform.tables,
        platform.catalog,
        run_id,
        f"python:{params['python']}",
        source_files(modules),
        manifest=SOURCES,
        owner=platform.principal.name,
    )
    platform.tables.overwrite(ENTRIES, entries, run_id=run_id)
    if rejected.count():
        platform.tables.overwrite(REJECTED, rejected, run_id=run_id)
    platform.catalog.finish_run(run_id, "finished")
    figures = {"rows": entries.count(), "rejected_modules": rejected.count(), "reused": False}
    say(f"  {figures['rows']:,} entries of {len(modules)} modules; {figures['rejected_modules']} modules rejected")
    return figures


def start_embedder(platform: Platform) -> None:
    """MiniLM behind an endpoint."""
    minilm = ServedEntity(name="minilm", model=EMBEDDER)
    platform.serving.put(EndpointSettings(name=EMBEDDER, task="embed", served_entities=[minilm]))


def index(platform: Platform) -> dict[str, Any]:
    """A vector index over the entries that stays at the table's version."""
    platform.serving.wait(EMBEDDER)
    platform.indexes.create(
        IndexSettings(
            name=INDEX,
            table=ENTRIES,
            primary_key="entry_id",
            text_columns=("entry_id", "summary"),
            text_template="{entry_id}: {summary}",
            payload_columns=("entry_id", "summary"),
            embedding_endpoint=EMBEDDER,
        ),
        owner=platform.principal.name,
    )
    wanted = platform.tables.version(ENTRIES)
    shown = -1
    while (status := platform.indexes.status(INDEX)).version < wanted:
        if status.error:
            say(f"  {status.error}")
        if status.progress and (done := 10 * status.progress[0] // max(1, status.progress[1])) > shown:
            shown = done
            bar("embed", *status.progress)
        time.sleep(0.5)
    say(f"  {status.num_rows:,} rows; the index is exact at version {status.version}, the table is at {wanted}")
    return {
        "rows": status.num_rows,
        "index_version": status.version,
        "table_version": wanted,
        "quarantined": status.quarantined,
    }


def examples(platform: Platform, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Write the training and the held-out table; returns the held-out questions, shuffled once and for all."""
    read = platform.tables.version(ENTRIES)
    entries = platform.tables.to_arrow(ENTRIES, read, columns=ENTRY_COLUMNS).sort_by("entry_id").to_pylist()
    asked = sorted(task.questions(entries), key=lambda one: hashlib.sha256(one["question"].encode()).digest())
    training = [one for one in asked if not one["held_out"]][: arguments.examples]
    held_out = [one for one in asked if one["held_out"]]
    assert not any(task.contains_name(one["question"], one["entry"]["entry_id"]) for one in asked)
    for table, chosen in ((TRAIN, training), (HELD_OUT, held_out[: arguments.held_out])):
        rows = pa.Table.from_pylist(rendered(platform, chosen), schema=EXAMPLE_SCHEMA)
        platform.tables.create(table, EXAMPLE_SCHEMA, primary_key="entry_id", owner=platform.principal.name)
        if platform.tables.to_arrow(table).sort_by("entry_id").equals(rows.sort_by("entry_id")):
            say(f"  reused: {table}, {rows.num_rows} examples")
            continue
        run_id = platform.catalog.start_run("examples", table, principal=platform.principal.name)
        platform.catalog.add_input(run_id, "table", ENTRIES, read, detail={"columns": ENTRY_COLUMNS})
        platform.catalog.add_input(run_id, "index", INDEX, read)
        platform.tables.overwrite(table, rows, run_id=run_id)
        platform.catalog.finish_run(run_id, "finished")
        say(f"  {table}: {rows.num_rows} examples")
    return held_out


def rendered(platform: Platform, chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each question as the chat that serving will show the model, with the entries that the index really finds."""
    retrieval = task.retrieval(INDEX)
    found = retrieve(platform, [one["question"] for one in chosen], retrieval.num_results)
    rows = []
    for one, hits in zip(chosen, found, strict=True):
        shown = [hit.payload for hit in hits]
        if one["entry"]["entry_id"] not in [hit.id for hit in hits]:
            # What was not found cannot be learned from: the entry takes the last place, where the model must still see
            # it.
            shown[-1] = {name: one["entry"][name] for name in ("entry_id", "summary")}
        messages = [
            message.model_dump(include={"role", "content"}) for message in retrieval.messages(one["question"], shown)
        ]
        messages.append({"role": "assistant", "content": task.house_style(one["entry"])})
        entry = one["entry"]
        rows.append(
            {
                "entry_id": entry["entry_id"],
                "module": entry["module"],
                "question": one["question"],
                "messages": messages,
            }
        )
    return rows


def retrieve(platform: Platform, questions: list[str], k: int, *, exact: bool = False) -> list[Any]:
    """The hits for each question; embedded in batches, asked of the index by vector."""
    embed = platform.embedder(EMBEDDER)
    vectors = [vector for start in range(0, len(questions), 64) for vector in embed(questions[start : start + 64])]
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda vector: platform.indexes.query(INDEX, vector, k, exact=exact), vectors)
        return [result.hits for result in asked]


def train(platform: Platform, arguments: argparse.Namespace) -> FineTuned:
    """Fine-tune on the tables' versions of now; an earlier run on the same versions is reused."""
    settings = TrainSettings(
        model=BASE,
        train_table=f"{TRAIN}@{platform.tables.version(TRAIN)}",
        eval_table=f"{HELD_OUT}@{platform.tables.version(HELD_OUT)}",
        max_length=512,
        micro_batch_size=2,  # halves the activations' memory; on a CPU it is not slower
        lora=LoraSettings(rank=16, alpha=32, last_layers=10),  # the backward pass ends there: twice as fast
        learning_rate=2e-3,
        experiment="quickstart",
    )

    def show(step: int, steps: int, loss: float) -> None:
        if step == 1 or step == steps or step % max(1, steps // 10) == 0:
            bar("train", step, steps, f"loss {loss:.3f}")

    tuned = platform.fine_tuning().run(
        settings,
        register_to=MODEL,
        alias="champion",
        principal=platform.principal,
        spec={"retrieval": task.retrieval(INDEX).model_dump(), "sampling": {"temperature": 0, "max_tokens": 96}},
        on_progress=show,
    )
    if tuned.reused:
        say(f"  reused: {tuned.version.full_name} was trained on exactly these tables with these settings")
    return tuned


def serve_alone(platform: Platform, arm: str) -> None:
    """An endpoint with one arm alone, so that both can be asked the same questions."""
    alone = [ServedEntity(name=arm, model=ARMS[arm])]
    platform.serving.put(
        EndpointSettings(name=f"assistant-{arm}", served_entities=alone, retrieval=task.retrieval(INDEX))
    )


def serve_endpoints(platform: Platform) -> None:
    """The assistant with both arms, and the tuned one alone."""
    split = [ServedEntity(name=name, model=model, traffic_percentage=50) for name, model in ARMS.items()]
    platform.serving.put(EndpointSettings(name="assistant", served_entities=split, retrieval=task.retrieval(INDEX)))
    serve_alone(platform, "tuned")
    for name in ("assistant", "assistant-tuned"):
        platform.serving.wait(name)


def ask(platform: Platform, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask with the official client and a token of one's own: every question of each arm, the first ones of the split
    too."""
    _, token = platform.catalog.create_token("quickstart", kind="service", is_admin=False, comment="jobs/quickstart.py")
    client = OpenAI(base_url=f"{platform.base_url}/v1", api_key=token, timeout=120)

    def one(endpoint: str, question: dict[str, Any]) -> dict[str, Any]:
        stream = client.chat.completions.create(
            model=endpoint,
            messages=[{"role": "user", "content": question["question"]}],
            stream=True,
            stream_options={"include_usage": True},
            temperature=0,
            max_tokens=96,
        )
        answer, tokens, disclosed, request_id = "", 0, None, ""
        for chunk in stream:
            request_id, disclosed = chunk.id, disclosed or chunk.model_extra.get("mosaic")
            answer += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        wanted = question["entry"]["entry_id"]
        return {
            "request_id": request_id,
            "question": question["question"],
            "wanted": wanted,
            "answer": answer,
            "tokens": tokens,
            **disclosed,
        }

    one("assistant-tuned", questions[0])  # loads the adapter, so that nobody's latency has it
    asked: dict[str, Any] = {}
    began, tokens = time.monotonic(), 0
    with ThreadPoolExecutor(16) as pool:
        for name, endpoint in (("base", "assistant-base"), ("tuned", "assistant-tuned"), ("split", "assistant")):
            chosen = questions if name != "split" else questions[: max(8, len(questions) // 5)]
            asked[name] = []
            for answered in pool.map(one, [endpoint] * len(chosen), chosen):
                asked[name].append(answered)
                tokens += answered["tokens"]
                if len(asked[name]) % max(1, len(chosen) // 4) == 0:
                    bar(f"ask {name}", len(asked[name]), len(chosen))
    asked["tokens_per_second"] = tokens / (time.monotonic() - began)
    sample = asked["split"][0]
    say(f"  Q: {sample['question']}\n  A ({sample['served_entity']}): {sample['answer']!r}")
    return asked


def hit_rates(platform: Platform, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the wanted entry is among the first five, by the index and by exact search over the same vectors."""
    figures: dict[str, Any] = {}
    for name, exact in (("hit_rate_at_5", False), ("exact_hit_rate_at_5", True)):
        found = retrieve(platform, [one["question"] for one in questions], 5, exact=exact)
        hits = sum(
            one["entry"]["entry_id"] in [hit.id for hit in hits] for one, hits in zip(questions, found, strict=True)
        )
        figures[name] = proportion(hits, len(questions)).model_dump()
    return figures


def training_figures(tuned: FineTuned) -> dict[str, Any]:
    """Held-out loss before and after, with intervals over the same rows; speed and memory."""
    result = tuned.result
    base, after = [row.nll_base for row in result.eval_rows], [row.nll_tuned for row in result.eval_rows]
    counts = [row.tokens for row in result.eval_rows]
    names = (
        "train_table",
        "steps",
        "rows",
        "tokens",
        "seconds",
        "seconds_per_step",
        "tokens_per_second",
        "peak_memory_bytes",
    )
    return {
        "model_version": tuned.version.full_name,
        "reused": tuned.reused,
        "held_out_loss_base": mean_loss(base, counts).model_dump(),
        "held_out_loss_tuned": mean_loss(after, counts).model_dump(),
        "loss_reduction": loss_reduction(base, after, counts).model_dump(),
        **{name: getattr(result, name) for name in names},
        "mlflow_run_id": result.mlflow_run_id,
    }


def answer_figures(asked: dict[str, Any]) -> dict[str, Any]:
    """House style and right entry, base against tuned, on the same questions."""
    figures: dict[str, Any] = {}
    for arm in ARMS:
        answers = asked[arm]
        styled = sum(task.is_house_style(one["answer"]) for one in answers)
        right = sum(task.names_entry(one["answer"], one["wanted"]) for one in answers)
        figures[arm] = {
            "house_style": proportion(styled, len(answers)).model_dump(),
            "answer_match": proportion(right, len(answers)).model_dump(),
        }
    arms = [one["served_entity"] for one in asked["split"]]
    figures["split"] = {arm: arms.count(arm) for arm in ARMS}
    return figures


def ledger_figures(platform: Platform) -> dict[str, Any]:
    """What the inference table holds of this platform's chats."""
    platform.flush_ledger()
    rows = platform.tables.to_arrow("system.serving.inference")
    chats = rows.filter((pc.field("path") == "/v1/chat/completions") & (pc.field("status_code") == 200))
    p50, p95 = pc.quantile(chats["duration_milliseconds"], q=[0.5, 0.95]).to_pylist()
    first = pc.quantile(chats["first_token_milliseconds"], q=[0.5])[0].as_py()
    return {
        "requests": chats.num_rows,
        "p50_milliseconds": p50,
        "p95_milliseconds": p95,
        "first_token_p50_milliseconds": first,
        "rows_in_inference_table": rows.num_rows,
        "distinct_request_ids": len(pc.unique(rows["request_id"])),
    }


@contextmanager
def timed(seconds: dict[str, float], name: str, title: str) -> Iterator[None]:
    say(title)
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Watch the memory that is in use on this machine, all processes together."""
    watched, stop = {"peak": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            memory = psutil.virtual_memory()
            watched["peak"] = max(watched["peak"], memory.total - memory.available)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join()


def quiet() -> None:
    """This job's own lines only; Ray's are in the dashboard."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.serve", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.ERROR)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="mosaic's main job, end to end.")
    parser.add_argument("--examples", type=int, default=320, help="training examples (default 320)")
    parser.add_argument("--held-out", type=int, default=80, help="rows of the held-out loss (default 80)")
    parser.add_argument("--questions", type=int, default=48, help="held-out questions asked of each arm (default 48)")
    parser.add_argument("--report", type=Path, default=Path("report.json"), help="where the figures go")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except mosaic.errors.MosaicError as error:
        Console(stderr=True).print(f"[red]quickstart: {error.message}")
        raise SystemExit(1) from error
