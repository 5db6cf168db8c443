"""Names: what is accepted comes back the same however its case; what is not is refused with what would be right."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.catalog import Catalog, parse_model_version, parse_table_version
from mosaic.catalog.names import parse_object, parse_schema
from mosaic.errors import BadRequest

part = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=40)
name = st.tuples(part, part, part).map(".".join)


@given(name)
def test_names_fold_their_case_and_nothing_else(text: str) -> None:
    folded = parse_object(text, "table")
    assert folded == text.lower() == parse_object(text.upper(), "table") == parse_object(folded, "table")


@given(name, st.integers(1, 2**31 - 1))
def test_model_versions_round_trip(text: str, version: int) -> None:
    found = parse_model_version(f"{text}/{version}")
    assert found == (text.lower(), version, None)
    assert parse_model_version(f"{found.model}/{found.version}") == found


@given(name, part.filter(lambda alias: not alias.isdigit()))
def test_aliases_round_trip(text: str, alias: str) -> None:
    assert parse_model_version(f"{text}@{alias}") == (text.lower(), None, alias.lower())


@given(name, st.one_of(st.none(), st.integers(0, 10**15)))
def test_table_versions_round_trip(text: str, version: int | None) -> None:
    written = text if version is None else f"{text}@{version}"
    assert parse_table_version(written) == (text.lower(), version)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_a_bad_request(text: str) -> None:
    for parse in (parse_schema, parse_model_version, parse_table_version, lambda name: parse_object(name, "table")):
        try:
            parse(text)
        except BadRequest as error:
            assert error.message.isascii() or not text.isascii()


@pytest.mark.parametrize(
    "text", ["main.docs.t@", "main.docs.t@-1", "main.docs.t@01", "main.docs.t@x", "main.docs.t@\u0663"]
)
def test_wrong_table_versions(text: str) -> None:
    with pytest.raises(BadRequest, match="must be a whole number such as 12"):
        parse_table_version(text)


@pytest.mark.parametrize("text", ["main.ml.bot@\u0663", "main.ml.bot/\u0663", "main.ml.bot/1/2", "main.ml.bot@a@b"])
def test_wrong_model_versions(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_model_version(text)


def test_what_is_stored_is_found_by_any_case(catalog: Catalog) -> None:
    @settings(deadline=None, max_examples=50)  # it waits for the disk
    @given(name.filter(lambda text: not text.lower().startswith("system.")))
    def found_again(text: str) -> None:
        catalog.ensure_schema(text.rpartition(".")[0])
        if catalog.find_table(text) is None:
            catalog.create_table(text, "/r", columns=[], primary_key=None, owner="ann")
        table = catalog.get_table(text.swapcase())
        assert table.name == text.lower() and table in catalog.list_tables(text.rpartition(".")[0].upper())
        assert catalog.find_table(text + "x") in (None, catalog.find_table(text + "X"))

    found_again()
