"""Models and prompts by their versions' names, and what a refusal advises can be done."""

from pathlib import Path

from tests.cli.conftest import Mosaic


def test_a_model_by_alias_and_by_number(shared: Mosaic) -> None:
    version = shared.catalog.get_model_version("main.docs.bot/2").model_dump(mode="json")
    assert shared.json("model", "get", "main.docs.bot@champion") == {**version, "tags": {}}
    assert shared.json("model", "get", "Main.Docs.Bot/2") == {**version, "tags": {}}
    for kind, name in (("model", "main.docs.bot"), ("prompt", "main.docs.greeting")):
        ended = shared.run(kind, "get", f"{name}@2")
        told = f"mosaic: '{name}@2' has a number for an alias, which is none; version 2 is {name}/2\n"
        assert (ended.code, ended.err) == (1, told)
    ended = shared.run("model", "get", "main.docs.bot@live")
    assert ended.code == 1 and "champion" in ended.err


def test_a_model_is_made_and_its_versions_deleted_one_by_one(mosaic: Mosaic) -> None:
    assert mosaic.ok("model", "create", "main.docs.new", "--comment", "To come") == "model main.docs.new is made\n"
    assert mosaic.catalog.get_model("main.docs.new").comment == "To come"
    refused = mosaic.run("model", "delete", "main.docs.bot")
    told = "model 'main.docs.bot' has the versions [1, 2]; delete them first, or use force (`--force`)"
    assert (refused.code, refused.err) == (1, f"mosaic: {told}\n")
    for number in ("1", "2"):
        mosaic.ok("model", "delete-version", "main.docs.bot", number)
    mosaic.ok("model", "delete", "main.docs.bot")
    for kind, name in (("schema", "main.docs"), ("catalog", "main")):
        refused = mosaic.run(kind, "delete", name)
        assert refused.code == 1 and refused.err.endswith("delete them first, or use force (`--force`)\n")


def test_a_prompt_is_found_by_its_comment_which_can_change(mosaic: Mosaic) -> None:
    mosaic.ok("prompt", "register", "main.docs.ode", "--template", "-", "--comment", "A poem", stdin="O {{it}}")
    assert [one["name"] for one in mosaic.json("search", "poem")] == ["main.docs.ode"]
    mosaic.ok("prompt", "register", "main.docs.ode", "--template", "-", "--comment", "Shorter", stdin="{{it}}")
    assert [one["comment"] for one in mosaic.json("prompt", "list") if one["name"] == "main.docs.ode"] == ["A poem"]
    mosaic.ok("prompt", "update", "main.docs.ode", "--comment", "An ode", "--owner", "bob")
    (ode,) = [one for one in mosaic.json("prompt", "list") if one["name"] == "main.docs.ode"]
    assert (ode["comment"], ode["owner"]) == ("An ode", "bob")
    assert mosaic.json("prompt", "get", "main.docs.ode")["comment"] == "Shorter"
    refused = mosaic.run("prompt", "update", "main.docs.ode", "--comment", "x", "--etag", "gone")
    assert refused.code == 1


def test_a_class_and_a_folder_are_registered(mosaic: Mosaic, tmp_path: Path) -> None:
    module = tmp_path / "bots.py"
    module.write_text("class Bot:\n    def predict(self, rows):\n        return [row['x'] for row in rows]\n")
    given = ("main.docs.adder", f"{module}:Bot", "--column", "x=long", "--alias", "live")
    assert mosaic.ok("model", "register", *given) == "python main.docs.adder/1 is registered as @live\n"
    made = mosaic.catalog.get_model_version("main.docs.adder@live")
    assert sorted(made.checksums) == ["model.py", "mosaic-model.json"] and made.source.startswith(str(mosaic.home))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"architectures": ["BertModel"]}')
    folder = str(tmp_path / "folder")
    assert mosaic.json("model", "register", "main.docs.adder", folder)["full_name"] == "main.docs.adder/2"
    refused = mosaic.run("model", "register", "main.docs.adder", f"{module}:Bot", "--column", "x=text")
    assert refused.code == 1 and "columns" in refused.err and "'text'" in refused.err


def test_a_policy_with_versions_and_an_alias(mosaic: Mosaic, tmp_path: Path) -> None:
    rules = tmp_path / "policy.yaml"
    rules.write_text("input:\n  pii: {behavior: block}\n")
    made = mosaic.ok("policy", "create", "main.docs.strict", "-r", str(rules), "--comment", "No PII")
    assert made == "policy main.docs.strict/1 is made\n"
    rules.write_text("input:\n  invalid_keywords: [moonshine]\n")
    mosaic.ok("policy", "create", "main.docs.strict", "-r", str(rules))
    mosaic.ok("policy", "alias", "set", "main.docs.strict", "prod", "1")
    shown = mosaic.json("policy", "get", "main.docs.strict@prod")
    assert shown["rules"] == {"input": {"pii": {"behavior": "BLOCK"}}} and shown["attached_to"] == []
    assert mosaic.json("policy", "get", "main.docs.strict")["version"] == 2
    assert [one["version"] for one in mosaic.json("policy", "versions", "main.docs.strict")] == [1, 2]
    assert [one["comment"] for one in mosaic.json("policy", "list")] == ["No PII"]
    for text, says in (("input: {piii: 1}", "piii"), ("- 1", "must hold input, output"), ("{", "is not YAML")):
        rules.write_text(text)
        refused = mosaic.run("policy", "create", "main.docs.strict", "-r", str(rules))
        assert refused.code == 1 and says in refused.err
    told = "policy main.docs.strict is dropped; `mosaic undrop policy main.docs.strict` undoes it\n"
    assert mosaic.ok("policy", "delete", "main.docs.strict") == told
