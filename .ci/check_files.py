"""Checks of single files, for pre-commit and CI: ``python .ci/check_files.py KIND FILES...``.

size: no file above 500 kB. newline: text ends with one newline (put right; the run fails so that the
change is seen), but files kept as an old release wrote them stay. toml: parses.
"""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

_LARGEST_BYTES = 500_000


def check_size(path: Path) -> str | None:
    """Return a complaint about a file too large for the repository."""
    size = path.stat().st_size
    return f"{size:,} bytes, above {_LARGEST_BYTES:,}" if size > _LARGEST_BYTES else None


def check_newline(path: Path) -> str | None:
    """Return a complaint about a text that did not end with one newline, and put it right."""
    if "releases" in path.parts:
        return None
    content = path.read_bytes()
    if not content or b"\0" in content:
        return None
    right = content.rstrip(b"\n") + b"\n"
    if content == right:
        return None
    path.write_bytes(right)
    return "did not end with one newline; now it does"


def check_toml(path: Path) -> str | None:
    """Return a complaint about a TOML file that does not parse."""
    if path.suffix != ".toml":
        return None
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"not valid TOML: {error}"
    return None


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    "size": check_size,
    "newline": check_newline,
    "toml": check_toml,
}


def main(kind: str, *names: str) -> int:
    """Check the files; 1 if there is a complaint."""
    complaints = [(name, _CHECKS[kind](Path(name))) for name in names if Path(name).is_file()]
    found = [f"{name}: {complaint}\n" for name, complaint in complaints if complaint is not None]
    sys.stderr.writelines(found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
