"""Damage to bytes and to JSON, drawn by hypothesis: what crashes, disks and enemies do to files."""

import json

from hypothesis import strategies as st

__all__ = ["damaged_bytes", "damaged_json", "json_values"]

#: Values that parsers stumble over.
AWKWARD = st.sampled_from(
    [None, True, -1, 0, 1, 2**63, 10**400, 1e308, 0.5, "", "../../x", "\x00", "é⣿", [], {}, [[]]]
)


def json_values():
    """Draw any JSON value, small."""
    leaves = AWKWARD | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
        ),
        max_leaves=6,
    )


@st.composite
def damaged_bytes(draw, content):
    """Cut, overwrite, repeat or insert bytes of a file."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat", "zero"]))
        length = draw(st.integers(1, 64))
        if kind == "flip":
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


@st.composite
def damaged_json(draw, content):
    """Replace, drop or add a value somewhere in a JSON document."""
    document = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        document = _damage(draw, document)
    return json.dumps(document).encode()


def _damage(draw, value, depth=0):
    if depth < 3 and isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: _damage(draw, value[key], depth + 1)}
    if depth < 3 and isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _damage(draw, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return {name: item for name, item in value.items() if name != key}
    return draw(json_values())
