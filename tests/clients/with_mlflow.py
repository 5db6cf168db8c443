"""MLflow's `uc:` registry: a model logged, registered, found, loaded and asked."""

import os
import warnings
from pathlib import Path

from tests.clients.calls import Calls

calls = Calls("mlflow-skinny")
os.environ |= {"MLFLOW_UC_OSS_TOKEN": calls.offered.token, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

import mlflow  # noqa: E402, reads the environment

warnings.simplefilter("ignore")
folder = Path(calls.offered.folder)
os.chdir(folder)  # MLflow puts the files of logged models below the folder that it runs in
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_registry_uri(f"uc:{calls.offered.address}")
client = mlflow.MlflowClient()


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context: object, model_input: list[str], params: object = None) -> list[str]:
        return [text[::-1] for text in model_input]


def log(**given: str) -> mlflow.models.model.ModelInfo:
    with mlflow.start_run():
        return mlflow.pyfunc.log_model(name="bot", python_model=Echo(), pip_requirements=[], **given)


made = calls.works("log a model", log, lambda made: made.model_id is not None)
calls.works(
    "register it",
    lambda: mlflow.register_model(made.model_uri, "main.ml.bot"),
    lambda one: (one.status, int(one.version)) == ("READY", 1),
)
# Given a model logged to local disk, MLflow deletes the folder that it has uploaded.
calls.not_offered(
    "register the same logged model again, where it was logged to local disk",
    lambda: mlflow.register_model(made.model_uri, "main.ml.bot"),
    "Unable to download model artifacts from source artifact location",
)
mlflow.pyfunc.save_model(folder / "saved", python_model=Echo(), pip_requirements=[])
calls.works(
    "register a saved folder, twice",
    lambda: [mlflow.register_model(str(folder / "saved"), "main.ml.bot").version for _ in range(2)],
    lambda versions: [int(version) for version in versions] == [2, 3],
)
calls.works(
    "log and register in one call",
    lambda: log(registered_model_name="main.ml.bot"),
    lambda one: one.registered_model_version == 4,
)
calls.refused(
    "register in a schema that is not there",
    lambda: mlflow.register_model(str(folder / "saved"), "main.no.bot"),
    "no schema 'main.no'",
)
calls.works(
    "load models:/main.ml.bot/2, and predict",
    lambda: mlflow.pyfunc.load_model("models:/main.ml.bot/2").predict(["abc"]),
    lambda answer: answer == ["cba"],
)
calls.works(
    # Other clients make models of their own beside this one.
    "search registered models",
    client.search_registered_models,
    lambda all: "main.ml.bot" in [m.name for m in all],
)
calls.works(
    "get a registered model", lambda: client.get_registered_model("main.ml.bot"), lambda one: one.name == "main.ml.bot"
)
calls.works(
    "describe a registered model",
    lambda: client.update_registered_model("main.ml.bot", "says it backwards"),
    lambda one: one.description == "says it backwards",
)
calls.works(
    "search model versions",
    lambda: client.search_model_versions("name = 'main.ml.bot'"),
    lambda all: sorted(int(one.version) for one in all) == [1, 2, 3, 4],
)
calls.works(
    "get a model version", lambda: client.get_model_version("main.ml.bot", "1"), lambda one: one.status == "READY"
)
calls.works(
    "describe a model version",
    lambda: client.update_model_version("main.ml.bot", "1", "the first"),
    lambda one: one.description == "the first",
)
calls.works("the address of its files", lambda: client.get_model_version_download_uri("main.ml.bot", "1"))
calls.works("delete a model version", lambda: client.delete_model_version("main.ml.bot", "1"))
calls.refused(
    "get a version that is not there", lambda: client.get_model_version("main.ml.bot", "1"), "no version 1 of model"
)
not_here = "Method not implemented"
calls.not_offered("set an alias", lambda: client.set_registered_model_alias("main.ml.bot", "champion", "2"), not_here)
calls.not_offered(
    "get a version by alias", lambda: client.get_model_version_by_alias("main.ml.bot", "champion"), not_here
)
calls.not_offered("tag a model", lambda: client.set_registered_model_tag("main.ml.bot", "a", "b"), not_here)
calls.not_offered("tag a version", lambda: client.set_model_version_tag("main.ml.bot", "2", "a", "b"), not_here)
calls.not_offered("rename a model", lambda: client.rename_registered_model("main.ml.bot", "main.ml.other"), not_here)
calls.not_offered("stages", lambda: client.transition_model_version_stage("main.ml.bot", "2", "Production"), not_here)
os.environ["MLFLOW_UC_OSS_TOKEN"] = calls.offered.without_select
calls.refused("load, without EXECUTE", lambda: mlflow.pyfunc.load_model("models:/main.ml.bot/2"), "PERMISSION_DENIED")
os.environ["MLFLOW_UC_OSS_TOKEN"] = calls.offered.token
calls.works(
    "delete a registered model",
    lambda: [
        *(client.delete_model_version("main.ml.bot", version) for version in "234"),
        client.delete_registered_model("main.ml.bot"),
    ],
)
calls.say()
