"""What the dashboard keeps between starts: `dashboard.json` beside the user's own keys."""

import contextlib
from typing import Any

from core.files import file_json, write_json
from tfx_cli.dashboard.keymap import user_folder

_FILE = "dashboard.json"


def read_choices() -> dict[str, Any]:
    """Return what was kept; nothing where the file is missing, or is no such file."""
    with contextlib.suppress(OSError, ValueError):
        found = file_json(user_folder() / _FILE)
        return found if isinstance(found, dict) else {}
    return {}


def keep_choices(**choices: object) -> None:
    """Add choices to what is kept; in a home that cannot be written nothing is."""
    with contextlib.suppress(OSError):
        user_folder().mkdir(parents=True, exist_ok=True)
        write_json(user_folder() / _FILE, read_choices() | choices)
