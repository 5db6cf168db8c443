"""Functions over the Unity Catalog protocol: in the shapes of unitycatalog-client and of databricks-sdk."""

import json
from typing import Any

from databricks.sdk.service import catalog as uc

from mosaic.catalog import Catalog
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_namespaces import NOW


def parameter(name: str, text: str, kind: str, position: int, **more: Any) -> dict[str, Any]:
    field = {"name": name, "type": text, "nullable": True, "metadata": {}}
    told = {"name": name, "type_text": text, "type_name": kind, "position": position, "type_json": json.dumps(field)}
    return told | more


FUNCTION: dict[str, Any] = {
    "name": "Add_Tax",
    "catalog_name": "main",
    "schema_name": "ml",
    "input_params": {
        "parameters": [
            parameter("rate", "decimal(5,2)", "DECIMAL", 1, parameter_default="0.19", comment="per one"),
            parameter("price", "double", "DOUBLE", 0),
        ]
    },
    "data_type": "DOUBLE",
    "full_data_type": "DOUBLE",
    "routine_body": "EXTERNAL",
    "routine_definition": "return price * (1 + float(rate))",
    "routine_dependencies": {"dependencies": [{"table": {"table_full_name": "main.docs.rates"}}]},
    "parameter_style": "S",
    "is_deterministic": True,
    "sql_data_access": "NO_SQL",
    "is_null_call": False,
    "security_type": "DEFINER",
    "specific_name": "add_tax",
    "comment": "adds it",
    "properties": '{"team": "shop"}',
    "external_language": "PYTHON",
}


def test_functions(unity: Unity, catalog: Catalog) -> None:
    made = unity.make("/functions", function_info=FUNCTION)
    price = parameter("price", "double", "DOUBLE", 0) | {"type_precision": 0, "type_scale": 0}
    rate = parameter("rate", "decimal(5,2)", "DECIMAL", 1) | {"type_precision": 5, "type_scale": 2}
    common = {"type_interval_type": None, "parameter_mode": "IN", "parameter_type": "PARAM"}
    expected = FUNCTION | {
        "name": "add_tax",
        "full_name": "main.ml.add_tax",
        "input_params": {
            "parameters": [
                price | common | {"parameter_default": None, "comment": None},
                rate | common | {"parameter_default": "0.19", "comment": "per one"},
            ]
        },
        "return_params": None,
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "function_id": made["function_id"],
        "external_name": None,
        "sql_path": None,
        "metastore_id": None,
        "browse_only": False,
    }
    assert made == expected
    assert unity("GET", "/functions/main.ML.add_tax", token=unity.reader).json() == made
    asked = "/functions?catalog_name=main&schema_name=ml"
    assert unity("GET", asked).json() == {"functions": [made], "next_page_token": None}
    # Who may only know of it does not see its code.
    admin = catalog.check_token(unity.admin)
    catalog.grants.revoke("catalog", "main", "users", ["EXECUTE", "SELECT"], by=admin)
    catalog.grants.grant("function", "main.ml.add_tax", "bob", ["BROWSE"], by=admin)
    hidden = made | {"routine_definition": None, "browse_only": True}
    assert unity("GET", "/functions/main.ml.add_tax", token=unity.reader).json() == hidden
    assert unity("GET", asked, token=unity.reader).json()["functions"] == [hidden]
    catalog.grants.grant("function", "main.ml.add_tax", "bob", ["MANAGE"], by=admin)
    assert unity("GET", "/functions/main.ml.add_tax", token=unity.reader).json() == made
    changed = unity("PATCH", "/functions/main.ml.add_tax", json={"comment": "x", "owner": "bob"}).json()
    assert changed == made | {"comment": "x", "owner": "bob", "updated_by": "ann"}
    again = unity("POST", "/functions", json={"function_info": FUNCTION})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    assert unity("DELETE", "/functions/main.ml.add_tax").json() == {}
    gone = unity("GET", "/functions/main.ml.add_tax")
    assert (gone.status_code, gone.json()["details"][0]["reason"]) == (404, "FUNCTION_NOT_FOUND")
    assert unity("POST", "/functions", json={"function_info": FUNCTION}, token=unity.reader).status_code == 403


def test_as_databricks_sdk_says_them(unity: Unity) -> None:
    parameters = [
        uc.FunctionParameterInfo(name="city", type_text="string", type_name=uc.ColumnTypeName.STRING, position=0)
    ]
    asked = uc.CreateFunction(
        name="weather",
        catalog_name="main",
        schema_name="ml",
        input_params=uc.FunctionParameterInfos(parameters=parameters),
        data_type=uc.ColumnTypeName.TABLE_TYPE,
        full_data_type="(day DATE, degrees DOUBLE)",
        routine_body=uc.CreateFunctionRoutineBody.SQL,
        routine_definition="SELECT day, degrees FROM main.docs.weather WHERE weather.city = city",
        parameter_style=uc.CreateFunctionParameterStyle.S,
        is_deterministic=False,
        sql_data_access=uc.CreateFunctionSqlDataAccess.READS_SQL_DATA,
        is_null_call=False,
        security_type=uc.CreateFunctionSecurityType.DEFINER,
        specific_name="weather",
        return_params=uc.FunctionParameterInfos(
            parameters=[
                uc.FunctionParameterInfo(name="day", type_text="date", type_name=uc.ColumnTypeName.DATE, position=0)
            ]
        ),
    )
    made = uc.FunctionInfo.from_dict(unity.make("/functions", function_info=asked.as_dict()))
    assert made.data_type is uc.ColumnTypeName.TABLE_TYPE and made.full_name == "main.ml.weather"
    assert made.input_params is not None and made.input_params.parameters is not None
    (city,) = made.input_params.parameters
    assert (city.type_name, city.parameter_mode) == (uc.ColumnTypeName.STRING, uc.FunctionParameterMode.IN)
    assert city.type_json == '{"name":"city","type":"string","nullable":true,"metadata":{}}'
    assert made.return_params is not None and made.external_language is None and made.routine_dependencies is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"routine_definition": "return ("}, "routine_definition is no Python"),
    ({"external_language": "R"}, "external_language 'R' must be PYTHON"),
    ({"external_language": None}, "external_language"),
    ({"sql_data_access": "READS_SQL_DATA"}, "sql_data_access 'NO_SQL', not 'READS_SQL_DATA'"),
    ({"data_type": "LONG"}, "has the name 'DOUBLE', not 'LONG'"),
    ({"full_data_type": "money"}, "type 'money' is none of Delta's"),
    ({"properties": "[1]"}, "properties '[1]' must be a JSON object of texts"),
    ({"properties": "{"}, "properties '{' must be"),
    ({"name": "a/b"}, "'a/b'"),
    ({"name": None}, "'function_info.name' is required"),
    ({"input_params": {"parameters": [parameter("a b", "int", "INT", 0)]}}, "parameter 'a b' must be a name"),
    ({"input_params": {"parameters": [parameter("lambda", "int", "INT", 0)]}}, "parameter 'lambda'"),
    ({"input_params": {"parameters": [parameter("a", "int", "INT", n) for n in (0, 1)]}}, "have a name twice"),
    ({"input_params": {"parameters": [parameter("a", "int", "STRING", 0)]}}, "has the name 'INT', not 'STRING'"),
    ({"input_params": {"parameters": [parameter("a", "int", "INT", -1)]}}, "position"),
    ({"security_type": "INVOKER"}, "security_type"),
    ({"routine_body": "JAVA"}, "routine_body"),
    ({"unknown": 1}, "unknown field 'function_info.unknown'"),
]


def test_wrong_functions(unity: Unity) -> None:
    for wrong, told in WRONG:
        body = {key: value for key, value in {**FUNCTION, **wrong}.items() if value is not None}
        refused = unity("POST", "/functions", json={"function_info": body})
        assert refused.status_code == 400 and told in refused.json()["message"], (wrong, refused.text)
    bare = unity("POST", "/functions", json=FUNCTION)
    assert bare.status_code == 400 and "function_info" in bare.json()["message"]
