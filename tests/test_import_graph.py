"""The import graph of the product: it has no circles, and every module is used."""

import ast
import importlib
from pathlib import Path

import grimp
import networkx
import pytest

from tfx_cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "tfx_cli", "transformerics")
#: Modules that are imported by name: entry points, commands, what `transformerics` loads on first use.
BY_NAME = {
    "tfx_cli.app",
    "tfx_cli.__main__",
    "transformerics.workflow",
    *(command.target.partition(":")[0] for command in COMMANDS),
}


@pytest.fixture(scope="module")
def imports():
    """Return module -> module imports, imports within functions included."""
    found = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    graph = networkx.DiGraph()
    graph.add_nodes_from(found.modules)
    for module in found.modules:
        graph.add_edges_from(
            (module, other) for other in found.find_modules_directly_imported_by(module)
        )
    return graph


def file_of(module):
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_no_modules_import_each_other_in_a_circle(imports):
    circles = [
        sorted(one) for one in networkx.strongly_connected_components(imports) if len(one) > 1
    ]
    assert circles == []


def test_every_module_is_imported_by_another(imports):
    unused = [
        module
        for module, importers in imports.in_degree()
        if importers == 0 and module not in BY_NAME and file_of(module).name != "__init__.py"
    ]
    assert unused == []


def test_the_graph_holds_the_product(imports):
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(imports) == modules
    assert imports.has_edge("tfx_cli.app", "core.errors") or imports.has_edge(
        "tfx_cli.output", "core.errors"
    )


@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda one: one.stem
)
def test_every_name_that_a_benchmark_imports_from_the_product_exists(script):
    imported = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
    ]
    missing = [
        f"{module}.{name}"
        for module, name in imported
        if not hasattr(importlib.import_module(module), name)
        and not file_of(f"{module}.{name}").exists()
    ]
    assert missing == []
