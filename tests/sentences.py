"""Every sentence that tfx prints, by module, in tests/sentences.txt: for reading them all in one sitting.

Strings of at least three words in the sources of core and tfx_cli (help, notes, warnings, errors, heads of tables, texts
of reports), and the docstrings that are help texts. A value is the name of its variable in braces. Renew the file by

    .venv/bin/python -m tests.sentences
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "sentences.txt"
_WORDS = re.compile(r"[A-Za-z][a-z'-]+")
#: What no user reads: regular expressions, styles, lists of names, code.
_NO_TEXT = re.compile(
    r"\(\?|\\[sdwbZA]|^#[0-9a-f]{6}|default-src|^[\w.]+( [\w.]+){9,}$|font-family|%\(asctime"
)


def _name(value: ast.expr) -> str:
    """Return a short name of a value: the same in every release of Python."""
    if isinstance(value, ast.Name):
        return value.id
    if isinstance(value, ast.Attribute):
        return value.attr
    if isinstance(value, ast.Call):
        return _name(value.func)
    if isinstance(value, ast.Subscript | ast.Starred):
        return _name(value.value)
    return "..."


def _text(node: ast.AST) -> str | None:
    """Return the text of a string, whatever it is joined of; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{_name(one.value)}}}" if isinstance(one, ast.FormattedValue) else str(_text(one))
            for one in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def _strings(node: ast.AST) -> Iterator[str]:
    """Yield the strings below a node in their order, without annotations and docstrings."""
    text = _text(node)
    if text is not None:
        yield text
        return
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        parts = child if isinstance(child, list) else [child]
        for place, part in enumerate(parts):
            is_first = name == "body" and place == 0 and isinstance(part, ast.Expr)
            if is_first and _text(part.value) is not None:
                # A docstring: of a command it is its help.
                doc = str(_text(part.value))
                if "\nExamples\n" in re.sub(r"\n +", "\n", doc):
                    yield doc.partition("Examples\n")[0]
            elif isinstance(part, ast.AST):
                yield from _strings(part)


def collect() -> str:
    """Return the content of the file."""
    lines = []
    for path in sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "tfx_cli").rglob("*.py")]):
        found = {
            " ".join(text.split()): None for text in _strings(ast.parse(path.read_text("utf-8")))
        }
        shown = [
            text
            for text in found
            if text.count(" ") > 1 and len(_WORDS.findall(text)) > 1 and not _NO_TEXT.search(text)
        ]
        if shown:
            lines += ["", path.relative_to(ROOT).as_posix(), *(f"    {text}" for text in shown)]
    return "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    FILE.write_text(collect(), encoding="utf-8")
