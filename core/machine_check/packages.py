"""Python and packages: what is installed, against what is needed and what the tests were run with."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from core.machine_check.report import MachineRow

__all__ = [
    "DISTRIBUTION",
    "EXTRAS",
    "TESTED_PYTHON",
    "TESTED_VERSIONS",
    "check_extras",
    "check_packages",
    "check_python",
    "lowest_versions",
]

#: Our name on the package index.
DISTRIBUTION = "transformerics"
OLDEST_PYTHON = (3, 11)
#: Newest Python that the tests were run with.
TESTED_PYTHON = (3, 11)
#: What we build on, in the versions of constraints.txt (a test compares the two).
TESTED_VERSIONS: dict[str, str] = {
    "accelerate": "1.15.0",
    "anndata": "0.12.19",
    "filelock": "4.2.11",
    "h5py": "3.16.0",
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
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "typer": "0.29.2",
}
#: Packages that are not needed: what each is for.
EXTRAS: dict[str, tuple[str, str]] = {
    "tensorboard": ("trackers", "train.trackers = ['tensorboard']"),
    "wandb": ("trackers", "train.trackers = ['wandb']"),
    "mlflow": ("trackers", "train.trackers = ['mlflow']"),
    "trackio": ("trackers", "train.trackers = ['trackio']"),
    "distributed": ("dask", "'tfx prepare --dask'"),
    "flash-attn": ("flash", "model.attention = 'flash'"),
    "peft": ("lora", "classification.encoder = 'lora'"),
    "textual-serve": ("web", "'tfx dashboard --web'"),
    "scvi-tools": ("scvi", "'tfx eval --generated FILE --baselines all'"),
}

Versions = Callable[[str], str | None]


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def lowest_versions(requirements: Iterable[str] | None = None) -> dict[str, str]:
    """Return the oldest version of each package that tfx needs: name -> version.

    Parameters
    ----------
    requirements
        As in metadata, ``torch>=2.10``; default: those of the installed tfx. Extras are left out.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires(DISTRIBUTION) or ()
        except importlib.metadata.PackageNotFoundError:
            requirements = ()
    found = {}
    for requirement in requirements:
        matched = re.match(r"([\w.-]+)[^;]*?(?:>=|==|~=)\s*([\d.]+)", requirement)
        if matched and "extra ==" not in requirement:
            found[matched.group(1)] = matched.group(2)
    return found


def check_python(version: tuple[int, int] | None = None) -> list[MachineRow]:
    """Check the interpreter.

    Parameters
    ----------
    version
        Major and minor; default: of this interpreter.
    """
    found = version or sys.version_info[:2]
    name = f"Python {platform.python_version() if version is None else '.'.join(map(str, found))}"
    if found < OLDEST_PYTHON:
        fix = f"make an environment with Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        return [MachineRow("fail", "python", "version", f"{name} is too old", fix)]
    tested = ".".join(map(str, TESTED_PYTHON))
    if found > TESTED_PYTHON:
        finding = f"{name} is newer than the tested {tested}; nothing is known against it"
        return [MachineRow("ok", "python", "version", finding)]
    return [MachineRow("ok", "python", "version", f"{name}, as tested")]


def check_packages(
    needed: Mapping[str, str] | None = None, versions: Versions = installed_version
) -> tuple[list[MachineRow], dict[str, Any]]:
    """Check that what tfx needs is installed, new enough, and not beyond what was tested.

    Parameters
    ----------
    needed
        Oldest version by package; default: those of the installed tfx.
    versions
        Gives the installed version of a package, or None.

    Returns
    -------
    Rows, and the version of every package (None: missing).
    """
    needed = lowest_versions() if needed is None else needed
    names = sorted({*needed, *TESTED_VERSIONS})
    found = {name: versions(name) for name in names}
    missing = [name for name in names if found[name] is None]
    old = [
        f"{name} {found[name]} (needs {needed[name]})"
        for name in names
        if name in needed and (version := found[name]) and is_older(version, needed[name])
    ]
    newer = [
        f"{name} {found[name]} (tested: {TESTED_VERSIONS[name]})"
        for name in names
        if (version := found[name])
        and name in TESTED_VERSIONS
        and is_older(_release_line(TESTED_VERSIONS[name]), _release_line(version))
    ]
    rows = []
    update = f"pip install --upgrade {DISTRIBUTION}"
    if missing:
        rows.append(MachineRow("fail", "python", "packages", f"missing: {_list(missing)}", update))
    if old:
        rows.append(MachineRow("fail", "python", "packages", f"too old: {_list(old)}", update))
    if newer:
        finding = f"newer than tested: {_list(newer)}"
        fix = "nothing, unless something fails; constraints.txt has the tested versions"
        rows.append(MachineRow("warn", "python", "packages", finding, fix))
    if not rows:
        finding = f"all {len(names)} packages are there, in releases that were tested or older"
        rows.append(MachineRow("ok", "python", "packages", finding))
    return rows, dict(found)


def check_extras(
    versions: Versions = installed_version,
) -> tuple[list[MachineRow], dict[str, Any]]:
    """Tell which optional packages are installed; none is needed.

    Returns
    -------
    Rows, and the version of every optional package (None: not installed).
    """
    found = {name: versions(name) for name in EXTRAS}
    rows = []
    for name, (extra, purpose) in EXTRAS.items():
        if found[name]:
            rows.append(MachineRow("ok", "extras", name, f"{found[name]}, for {purpose}"))
        else:
            finding = f"not installed; only {purpose} needs it"
            fix = f"pip install '{DISTRIBUTION}[{extra}]', if wanted"
            rows.append(MachineRow("ok", "extras", name, finding, fix))
    return rows, dict(found)


def is_older(version: str, than: str) -> bool:
    """Compare the numbers of two versions, as many as both have."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def _release_line(version: str) -> str:
    """Return major and minor: bug fixes are no news."""
    return ".".join(map(str, _numbers(version)[:2]))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
