"""Python and packages: installed versions against required and tested ones."""

import contextlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping

from core.findings import Finding

#: Our name on the package index.
DISTRIBUTION = "transformerics"
OLDEST_PYTHON = (3, 11)
#: Newest Python that the tests were run with.
TESTED_PYTHON = (3, 11)
#: Our dependencies, in the versions of constraints.txt (a test compares the two).
TESTED_VERSIONS: dict[str, str] = {
    "accelerate": "1.15.0",
    "anndata": "0.12.19",
    "bracex": "3.2.3",
    "filelock": "4.2.11",
    "h5py": "3.16.0",
    "jinja2": "3.1.6",
    "networkx": "3.6.1",
    "numpy": "2.4.6",
    "nvidia-ml-py": "13.615.71",
    "pandas": "2.3.3",
    "psutil": "7.2.2",
    "pydantic": "2.14.3",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "scanpy": "1.11.5",
    "scikit-learn": "1.9.1",
    "scikit-misc": "0.5.3",
    "scipy": "1.17.1",
    "textual": "8.2.8",
    "threadpoolctl": "3.8.0",
    "tomlkit": "0.15.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "typer": "0.29.2",
    "zarr": "3.1.6",
}
#: Optional packages -> our extra that installs them, and what they are for.
EXTRAS: dict[str, tuple[str, str]] = {
    "tensorboard": ("trackers", "train.trackers = ['tensorboard']"),
    "wandb": ("trackers", "train.trackers = ['wandb']"),
    "mlflow": ("trackers", "train.trackers = ['mlflow']"),
    "trackio": ("trackers", "train.trackers = ['trackio']"),
    "distributed": ("dask", "'tfx prepare --dask'"),
    "flash-attn": ("flash", "model.attention = 'flash'"),
    "peft": ("lora", "classification.encoder = 'lora'"),
    "textual-serve": ("web", "'tfx dashboard --web'"),
    "cellxgene-ontology-guide": ("ontology", "ids and names of ontology terms that meet"),
    "tiledbsoma": ("soma", "'soma://PATH'"),
    "scvi-tools": ("scvi", "'tfx eval --generated FILE --baselines all'"),
}

#: Distribution -> installed version, None if it is missing.
Versions = dict[str, str | None]


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _installed_requirements() -> list[str]:
    """Return the requirements of the installed tfx, as in metadata: ``torch>=2.10``."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires(DISTRIBUTION) or []
    return []


def lowest_versions(requirements: Iterable[str]) -> dict[str, str]:
    """Return the oldest allowed version of each requirement; those of extras are left out."""
    found = {}
    for requirement in requirements:
        matched = re.match(r"([\w.-]+)[^;]*?(?:>=|==|~=)\s*([\d.]+)", requirement)
        if matched and "extra ==" not in requirement:
            found[matched.group(1)] = matched.group(2)
    return found


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> list[Finding]:
    """Check the interpreter, given as (major, minor)."""
    if version < OLDEST_PYTHON:
        finding = f"Python {_dotted(version)} is too old"
        fix = f"make an environment with Python {_dotted(OLDEST_PYTHON)} or newer"
        return [Finding("fail", "python", "version", finding, fix)]
    finding = f"Python {platform.python_version()}, as tested"
    if version > TESTED_PYTHON:
        finding = f"Python {_dotted(version)} is newer than the tested {_dotted(TESTED_PYTHON)}"
        finding += "; no problem is known"
    return [Finding("ok", "python", "version", finding)]


def check_packages(
    required: Mapping[str, str] | None = None,
    find_version: Callable[[str], str | None] = installed_version,
) -> tuple[list[Finding], Versions]:
    """Check that every dependency is installed, new enough, and no newer than tested.

    ``required`` gives the oldest allowed version by package (default: those of the installed tfx).
    Returns rows, and the version of every package.
    """
    required = lowest_versions(_installed_requirements()) if required is None else required
    installed = {name: find_version(name) for name in sorted({*required, *TESTED_VERSIONS})}
    missing, old, newer = [], [], []
    for name, version in installed.items():
        oldest, tested = required.get(name), TESTED_VERSIONS.get(name)
        if version is None:
            missing.append(name)
        elif oldest and _numbers(version) < _numbers(oldest):
            old.append(f"{name} {version} (needs {oldest})")
        # Major and minor only: a later bug fix is not worth a warning.
        elif tested and _numbers(version)[:2] > _numbers(tested)[:2]:
            newer.append(f"{name} {version} (tested: {tested})")
    update = f"pip install --upgrade {DISTRIBUTION}"
    rows = [
        Finding("fail", "python", "packages", f"{what}: {', '.join(names)}", update)
        for what, names in (("missing", missing), ("too old", old))
        if names
    ]
    if newer:
        finding = f"newer than tested: {', '.join(newer)}"
        fix = "nothing, unless something fails; constraints.txt has the tested versions"
        rows.append(Finding("warn", "python", "packages", finding, fix))
    if not rows:
        finding = f"all {len(installed)} packages are installed, in tested or older releases"
        rows.append(Finding("ok", "python", "packages", finding))
    return rows, installed


def check_extras(
    find_version: Callable[[str], str | None] = installed_version,
) -> tuple[list[Finding], Versions]:
    """List the optional packages, as `check_packages` does; none is required."""
    installed = {name: find_version(name) for name in EXTRAS}
    rows = []
    for name, (extra, purpose) in EXTRAS.items():
        finding, fix = f"{installed[name]}, for {purpose}", ""
        if installed[name] is None:
            finding = f"not installed; only {purpose} needs it"
            fix = f"pip install '{DISTRIBUTION}[{extra}]', if you want it"
        rows.append(Finding("ok", "extras", name, finding, fix))
    return rows, installed


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
