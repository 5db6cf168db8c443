"""How the quickstart speaks: lines while it works, and the report as tables and a tree."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from mosaic.platform import Platform

CONSOLE = Console(width=118, highlight=False, force_terminal=False)


def say(line: str) -> None:
    print(line, flush=True)


def bar(what: str, done: int, total: int, more: str = "") -> None:
    """One line of progress: a job's output is a log, where a moving bar would be noise."""
    filled = 24 * done // max(1, total)
    say(f"  {what:<10} [{'#' * filled}{'.' * (24 - filled)}] {done:>6,} / {total:,} {more}")


def print_report(report: dict[str, Any], platform: Platform, file: Path) -> None:
    """Every figure of report.json that a person wants to see, and how to go on."""
    training, answers, gateway = report["training"], report["answers"], report["gateway"]
    table = Table(
        "", "base", "tuned", title="Held out: modules that training never saw (95 % intervals)", title_justify="left"
    )
    table.add_row("loss per token", _loss(training["held_out_loss_base"]), _loss(training["held_out_loss_tuned"]))
    for name, title in (("house_style", "answers in house style"), ("answer_match", "answers naming the right entry")):
        table.add_row(title, _share(answers["base"][name]), _share(answers["tuned"][name]))
    CONSOLE.print(table)

    index, hits, seconds = report["index"], report["retrieval"], report["seconds"]
    figures = Table("", "", title="Figures", title_justify="left", show_header=False)
    for name, value in (
        (
            "entries ingested",
            f"{report['ingest']['rows']:,} ({report['ingest']['rejected_modules']} modules in quarantine)",
        ),
        ("index version / table version", f"{index['index_version']} / {index['table_version']}"),
        ("hit rate at 5, index", _share(hits["hit_rate_at_5"])),
        ("hit rate at 5, exact search", _share(hits["exact_hit_rate_at_5"])),
        ("held-out loss lowered by", _share(training["loss_reduction"])),
        (
            "training",
            f"{training['rows']:,} rows, {training['steps']} steps, {training['seconds_per_step']:.2f} s a step, "
            f"{training['tokens_per_second']:,.0f} tokens/s",
        ),
        ("engine, 16 clients", f"{report['engine']['output_tokens_per_second']:,.0f} output tokens/s"),
        (
            "gateway, chat requests",
            f"{gateway['requests']:,}: p50 {gateway['p50_milliseconds']:,.0f} ms, p95 "
            f"{gateway['p95_milliseconds']:,.0f} ms, first token p50 {gateway['first_token_p50_milliseconds']:,.0f} ms",
        ),
        (
            "rows in the inference table",
            f"{gateway['rows_in_inference_table']:,}, request ids {gateway['distinct_request_ids']:,}",
        ),
        ("traffic split", ", ".join(f"{arm} {n}" for arm, n in answers["split"].items())),
        ("peak memory in use, whole machine", f"{report['peak_memory_bytes'] / 1e9:.1f} GB"),
        ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
    ):
        figures.add_row(name, value)
    CONSOLE.print(figures)
    CONSOLE.print(_tree(report["lineage"]))
    say(_impact(report["impact"]))
    say(f"\nAll figures: {file.resolve()}")
    say(f"Gateway: {platform.base_url}/v1   MLflow: {platform.mlflow_uri}\n")
    say("If the platform stays up (`make demo KEEP=1`), make a token with `mosaic token create you` and ask:\n")
    say(f"""  curl -N {platform.base_url}/v1/chat/completions -H "authorization: Bearer $TOKEN" \\
    -H "content-type: application/json" \\
    -d '{{"model": "assistant", "stream": true, "messages": [{{"role": "user", "content": "How do I parse JSON?"}}]}}'
""")


def _tree(node: dict[str, Any]) -> Tree:
    facts = ", ".join(f"{key} {_short(value)}" for key, value in node["facts"].items() if value is not None)
    tree = Tree(f"{node['label']}" + (f"  ({facts})" if facts else ""))
    for part in node["came_from"]:
        tree.children.append(_tree(part))
    return tree


def _impact(impact: dict[str, Any]) -> str:
    things = [
        f"{one['kind']} {one['name']} {', '.join(str(version) for version in one['versions'])}"
        for one in impact["dependents"]
    ]
    given = impact["answers"]["given_rows"]
    total = impact["answers"]["total"]
    return (
        f'The other way, `mosaic impact {impact["table"]} --where "{impact["where"]}"`: {"; ".join(things)}; '
        f"{total:,} answers, {given:,} of them given that row"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else text[:45] + "..."


def _share(estimate: dict[str, Any]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} %  [{low:.1f}, {high:.1f}], n {estimate['n']}"


def _loss(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3f}  [{estimate['low']:.3f}, {estimate['high']:.3f}], n {estimate['n']}"
