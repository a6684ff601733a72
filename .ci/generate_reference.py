"""Write the reference pages that follow from the code: ``.venv/bin/python .ci/generate_reference.py``.

Commands come from the Typer application, preset keys from the schema, exit codes and JSON results from the source of the
commands, the Python API from docstrings. tests/docs/test_reference.py compares the pages with the code.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import transformerics
from core.errors import ExitCode
from core.presets.fields import schema_as_markdown
from tfx_cli.app import COMMANDS, app
from tfx_cli.command_line import as_written

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_MADE = "<!-- Made from the code by .ci/generate_reference.py: change the code, then run it. -->"

#: What an exit code means, and what to do.
_EXIT_CODES = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed: training diverged, or tfx has a fault",
    ExitCode.CONFIGURATION: "the command line or the preset is wrong; the message says which word or key",
    ExitCode.MACHINE: "the machine lacks something: a device, memory, disk space, a package",
    ExitCode.DATA: "the cells, genes or labels are not fit; `tfx check` shows all that is wrong",
    ExitCode.STOPPED_EARLY: "stopped early, after a checkpoint was saved; the same command continues the run",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; nothing half-written is left",
}
#: Where the fields of a result are defined, if it is not printed from a dictionary: (file, class).
_RECORDS = {
    "eval": ("core/evaluation/report/records.py", "EvaluationReport"),
    "eval.doubles": ("core/inference/evaluate_doubles.py", "DoublesReport"),
    "fidelity": ("core/evaluation/report/records.py", "FidelityReport"),
    "train-forecast": ("core/training/forecast.py", "RunForecast"),
    "runs.show": ("core/runlog/overview.py", "RunOverview"),
    "runs.compare": ("core/runlog/overview.py", "Comparison"),
}
_FURTHER = {"check": ("level", "rows", "facts"), "doctor": ("level", "rows", "facts")}


def pages() -> dict[str, str]:
    """Return the text of every generated page by its name."""
    return {
        "reference-commands.md": _commands(),
        "reference-presets.md": _presets(),
        "reference-json.md": _results(),
        "reference-python.md": _python(),
    }


# -- commands
def _commands() -> str:
    lines = [
        "# Commands and their options", _MADE,
        "Look up here every command and option. `tfx COMMAND --help` prints the same. An option whose meaning ends in the "
        "name of a key, as in `(train.device)`, changes that key of the [preset](reference-presets.md).",
    ]  # fmt: skip
    root = as_written(typer.main.get_command(app))
    lines += _command("tfx", root)
    for entry in COMMANDS:
        command = entry.load()
        lines += _command(f"tfx {entry.name}", command)
        for name, inner in getattr(command, "commands", {}).items():
            lines += _command(f"tfx {entry.name} {name}", inner)
    return _joined(lines)


def _command(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401 - of Typer's vendored Click
    context = command.make_context(name, [], resilient_parsing=True)
    usage = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    yield f"## {name}"
    yield _code(" ".join([name, *usage, "[OPTIONS]"]))
    yield _plain(command.help or "")
    rows = []
    for parameter in command.params:
        if (record := parameter.get_help_record(context)) is not None:
            names, meaning = map(_plain, record)
            is_argument = parameter.param_type_name == "argument"
            names = re.sub(r" <[\w\[\]]+>$" if is_argument else r" <bool>$", "", names)
            rows.append(f"| `{_cell(names)}` | {_cell(meaning)} |")
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if command.epilog:
        examples = [line.removeprefix("$ ") for line in _plain(command.epilog).splitlines()[1:]]
        yield "\n".join(f"    {line}" for line in examples)


def _plain(text: str) -> str:
    return text.replace("\\[", "[")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _joined(paragraphs: list[str]) -> str:
    return "\n\n".join(paragraph.strip("\n") for paragraph in paragraphs if paragraph) + "\n"


# -- preset keys
def _presets() -> str:
    title, _, rest = schema_as_markdown().partition("\n")
    opening = (
        "Look up here what you can set in a preset. `tfx presets schema` prints this page, and `tfx presets schema "
        "--format json` a JSON Schema with which editors complete and check presets."
    )
    return _joined([title, _MADE, opening, rest])


# -- exit codes and JSON
def _results() -> str:
    codes = [f"| {code.value} | {_EXIT_CODES[code]} |" for code in ExitCode]
    results = [
        f"| `{name}` | `tfx.{name}/{version}` | {', '.join(f'`{field}`' for field in fields)} |"
        for name, (version, fields) in sorted(_printed_results().items())
    ]
    return _joined([
        "# Exit codes and JSON results", _MADE,
        "Look up here what a script gets from a command: its exit code, and the keys of what `--json` prints.",
        "## Exit codes",
        "Results go to stdout, progress, warnings and errors to stderr. An error is one sentence, without a traceback.",
        "\n".join(["| code | meaning |", "|---|---|", *codes]),
        "## JSON results",
        "With `--json` a command prints one JSON object to stdout. Its key `schema` names the kind of result and a version, "
        "which rises if a key changes its meaning; new keys may be added without that. A number that is not defined is null. "
        "[evaluation.md](evaluation.md) and [fidelity.md](fidelity.md) explain the numbers of the two reports, "
        "[generate-serve.md](generate-serve.md) the events of `tfx generate --serve`.",
        "\n".join(["| result | schema | keys beside `schema` |", "|---|---|---|", *results]),
    ])  # fmt: skip


def _printed_results() -> dict[str, tuple[int, list[str]]]:
    """Find every call of ``print_result`` in the commands: its name, version and keys."""
    found: dict[str, tuple[int, list[str]]] = {}
    for path in sorted((ROOT / "tfx_cli").glob("*_command.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "print_result":
                    name = ast.literal_eval(call.args[0])
                    _, keys = found.get(name, (1, []))
                    more = [key for key in _keys(call.args[1], function) if key not in keys]
                    found[name] = (_version(call), [*keys, *more])
    for name, (_, keys) in found.items():
        if name in _RECORDS:
            keys += [one for one in _fields(*_RECORDS[name]) if one not in keys]
        keys += _FURTHER.get(name, ())
        if not keys:
            raise ValueError(f"the keys of the result {name} are not known; add it to _RECORDS")
    return found


def _version(call: ast.Call) -> int:
    (value,) = [one.value for one in call.keywords if one.arg == "version"] or [ast.Constant(1)]
    if isinstance(value, ast.Constant):
        return int(str(value.value))
    from core.evaluation.report import records

    return int(getattr(records, getattr(value, "id", "")))


def _keys(value: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    if isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value)
            elif key is None:
                yield from _keys(inner, function)
    elif isinstance(value, ast.BinOp):
        yield from _keys(value.left, function)
        yield from _keys(value.right, function)
    elif isinstance(value, ast.DictComp):  # {name: ... for name in names}
        yield from _strings(value.generators[0].iter, function)
    elif isinstance(value, ast.Name):
        for one in _assigned(value.id, function):
            yield from _keys(one, function)


def _strings(value: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    if isinstance(value, ast.Tuple):
        yield from (str(ast.literal_eval(one)) for one in value.elts)
    elif isinstance(value, ast.Name):
        for one in _assigned(value.id, function):
            yield from _strings(one, function)


def _assigned(name: str, function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            yield node.value


def _fields(file: str, name: str) -> list[str]:
    """Names of the fields of a dataclass, inherited ones first."""
    classes = _definitions(file, ast.ClassDef)
    inherited = [getattr(base, "id", "") for base in classes[name].bases]
    own = [
        one.target.id
        for one in classes[name].body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    ]
    return [
        *(field for base in inherited if base in classes for field in _fields(file, base)),
        *own,
    ]


def _definitions(file: str, kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a kind of ast node
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, kind)}


# -- the Python API
def _python() -> str:
    lines = [
        "# Python functions and classes", _MADE,
        "Look up here the signature and the meaning of what `import transformerics as tfx` gives you. "
        "[Use tfx in Python](python.md) has examples.",
    ]  # fmt: skip
    functions = _definitions("transformerics/workflow.py", ast.FunctionDef)
    for name in sorted(transformerics.__all__):
        if name in functions:
            lines += _documented(f"tfx.{name}", functions[name])
    for name, module in transformerics._MODULES.items():
        found = _definitions(f"{module.replace('.', '/')}.py", ast.ClassDef)[name]
        lines += [f"## tfx.{name}", _prose(ast.get_docstring(found) or "")]
        for method in found.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                lines += _documented(f"{name}.{method.name}", method, level=3)
    return _joined(lines)


def _documented(name: str, function: ast.FunctionDef, *, level: int = 2) -> Iterator[str]:
    decorators = {getattr(one, "id", "") for one in function.decorator_list}
    yield f"{'#' * level} {name}"
    returns = "" if function.returns is None else f" -> {_annotation(function.returns)}"
    if decorators & {"property", "cached_property"}:
        yield f"```python\n{name}  # {returns.removeprefix(' -> ')}\n```"
    else:
        parameters = _parameters(function.args)
        line = f"{name}({', '.join(parameters)}){returns}"
        if len(line) > 100:
            line = f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){returns}"
        yield f"```text\n{line}\n```"
    yield _prose(ast.get_docstring(function) or "")


def _parameters(found: ast.arguments) -> list[str]:
    first = [*found.posonlyargs, *found.args]
    defaults = [None] * (len(first) - len(found.defaults)) + list(found.defaults)
    parts = [_parameter(*pair) for pair in zip(first, defaults, strict=True)]
    parts = [one for one in parts if one not in ("self", "cls")]
    if found.vararg is not None:
        parts.append(f"*{found.vararg.arg}")
    elif found.kwonlyargs:
        parts.append("*")
    parts += [_parameter(*pair) for pair in zip(found.kwonlyargs, found.kw_defaults, strict=True)]
    return parts + ([f"**{found.kwarg.arg}"] if found.kwarg is not None else [])


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    kind = "" if parameter.annotation is None else f": {_annotation(parameter.annotation)}"
    return f"{parameter.arg}{kind}" + ("" if default is None else f" = {ast.unparse(default)}")


def _annotation(node: ast.expr) -> str:
    return (
        ast.unparse(node).replace("'", "") if isinstance(node, ast.Constant) else ast.unparse(node)
    )


def _prose(docstring: str) -> str:
    """Make Markdown of a docstring: code, heads of sections, and their lists of names with meanings."""
    text = inspect.cleandoc(docstring).replace("``", "`")
    text = re.sub(r"^(\w+)\n-{3,}$", r"**\1**\n", text, flags=re.MULTILINE)
    return re.sub(r"^(\S+)\n    (?=\S)", r"- `\1`: ", text, flags=re.MULTILINE)


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
