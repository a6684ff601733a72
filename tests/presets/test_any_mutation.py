"""Whatever is done to a preset, it is a preset or it is one ConfigurationError with lines."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from core.presets.fields import all_fields
from core.presets.loading import ResolvedPreset, resolve_preset
from core.presets.toml_text import write_key, write_value

PRESET = """\
# a preset that uses every form of TOML
name = "base"

[data]
files = ["builtin:atlas", 'b.h5ad']
genes = 64
phenotypes = { sex = "sex", "my col" = false }
split.by = "donor_id"

[encoding]
kind = "binned"
edges = [0.1, 1.0, 2.0]

[masking]
genes = "uniform"

[model]
hidden_size = 32
heads = 4

[train]
max_steps = 10
learning_rate = 5e-4
"""
FRAGMENTS = st.sampled_from("[]\"'=.#{},\\é\n\x00 ") | st.sampled_from(
    [
        "[[",
        '"""',
        "nan",
        "inf",
        "-1",
        "1e999",
        "true",
        "[train]",
        "[data]",
        "1979-05-27",
        "0x" + "f" * 20,
    ]
)
VALUES = st.recursive(
    st.text()
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.dates()
    | st.times()
    | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = [field.path for field in all_fields()]
LINE = re.compile(r"base\.toml:\d+: .+|base\.toml: .+|TFX_.+|--.+", re.DOTALL)


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text="", **others):
        path = tmp_path / "base.toml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        message = ""
        try:
            resolved = resolve_preset(path, **others)
        except ConfigurationError as error:
            message = str(error)
        else:
            assert ResolvedPreset.from_toml(resolved.to_toml()) == resolved
        assert not message or all(LINE.match(line) for line in message.split("\n"))

    return run


@given(data=st.data())
def test_cutting_and_pasting_text(resolve, data):
    text = PRESET
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(FRAGMENTS | st.text(max_size=3)) + text[end:]
    resolve(text)


@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_for_any_key_in_a_file(resolve, key, value):
    path = ".".join(write_key(part) for part in key)
    text = f"{path} = {write_value(value)}\n"
    resolve(text if key == ("data", "files") else 'data.files = "a"\n' + text)


@given(key=st.sampled_from(KEYS), extra=st.text(max_size=4), value=VALUES, text=st.text())
def test_anything_in_options_variables_and_assignments(resolve, key, extra, value, text):
    resolve(PRESET, options={".".join(key) + extra: value})
    resolve(PRESET, environment={f"TFX_{'__'.join(key).upper()}{extra}": text})
    resolve(PRESET, assignments=[f"{'.'.join(key)}{extra}={text}"])


@given(st.binary())
def test_any_bytes(resolve, content):
    resolve(content.decode("latin-1"))


def test_an_integer_too_long_for_decimal_digits_is_refused(resolve):
    resolve(PRESET.replace("genes = 64", f"genes = {hex(1 << 20_000)}"))
    resolve(PRESET.replace("genes = 64", f"genes = {'9' * 20_000}"))
    resolve(PRESET, options={"data.genes": 1 << 20_000})
