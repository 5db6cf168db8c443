"""MLflow's own client at work, in a process that knows an address and a token: run by test_mlflow_proxy.py.

Prints JSON. The argument is a file of Python that points it at the platform: the snippet of docs/catalog.md.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException


class Same(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: object, model_input: list[str], params: object = None) -> list[str]:
        return model_input


def main() -> None:
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model("bot")
    except MlflowException as error:
        registry = str(error)
    exec(compile(Path(sys.argv[1]).read_text(), sys.argv[1], "exec"), {})
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name="one") as run:
        run_id = run.info.run_id
        mlflow.log_params({"a": 1, "b": "x"})
        mlflow.log_metrics({"loss": 0.25}, step=1)
        client.log_batch(run_id, [Metric("many", float(i), i, i) for i in range(900)])
        mlflow.set_tag("stage", "draft")
        file, data = Path(folder) / "big file.bin", os.urandom(10 * 1024 * 1024)
        file.write_bytes(data)
        mlflow.log_artifact(str(file), "files")
        mlflow.log_text("hello", "notes/hello.txt")
        logged = mlflow.pyfunc.log_model(name="same", python_model=Same(), pip_requirements=[])
        mlflow.log_metric("accuracy", float("nan"), model_id=logged.model_id)
    version = mlflow.register_model(logged.model_uri, "main.ml.same")
    with mlflow.start_span("outer") as span:
        span.set_inputs({"q": 1})
        with mlflow.start_span("inner"):
            pass
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    client.set_trace_tag(trace.info.trace_id, "colour", "red")
    said = mlflow.log_feedback(trace_id=trace.info.trace_id, name="good", value=True)
    mlflow.override_feedback(trace_id=trace.info.trace_id, assessment_id=said.assessment_id, value=False)
    back = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="files")) / "big file.bin"
    told = {
        "registry": registry,
        "run": run_id,
        "experiment": run.info.experiment_id,
        "kept_in": run.info.artifact_uri,
        "trace": trace.info.trace_id,
        "model": logged.model_id,
        "version": int(version.version),
        "hello": mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/hello.txt"),
        "same": back.read_bytes() == data,
        "files": [one.path for one in client.list_artifacts(run_id)],
        "found": len(mlflow.search_runs(experiment_names=["work"], filter_string="metrics.loss < 1")),
        "history": len(client.get_metric_history(run_id, "many")),
        "predicts": mlflow.pyfunc.load_model(logged.model_uri).predict(["a"]),
        "registered_predicts": mlflow.pyfunc.load_model("models:/main.ml.same/1").predict(["a"]),
        "models": len(mlflow.search_logged_models(output_format="list")),
        "spans": sorted(span.name for span in trace.data.spans),
        "traces": len(mlflow.search_traces(return_type="list")),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
