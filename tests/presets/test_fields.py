import pytest

from core.presets.fields import all_fields, schema_as_json, schema_as_markdown
from core.presets.schema import ALTERNATIVES


def test_every_key_has_a_meaning():
    assert [field.path for field in all_fields() if not field.info.description] == []


def test_the_page_has_a_row_for_every_key():
    page = schema_as_markdown()
    for field in all_fields():
        name = "NAME" if field.is_table else field.path[-1]
        assert f"| `{name}` | {field.wanted} |" in page
    assert "| `genes` | a number from 0 to 1 or 'uniform' | `0.15` |" in page
    assert "## [data.split]" in page


def test_the_json_schema_names_every_section():
    schema = schema_as_json()
    assert {"data", "encoding", "masking", "model", "loss", "train", "generate"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("pair", ALTERNATIVES)
def test_alternatives_are_keys_of_the_schema(pair):
    known = {".".join(field.path) for field in all_fields() if field.is_nullable}
    assert set(pair) <= known
