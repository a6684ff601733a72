"""Messages of the screens to the application: what the user requests, without knowing who does it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textual.message import Message


class CloseScreen(Message):
    """Close this screen."""


class ReadSoon(Message):
    """Read the run folders now: the screen shows other runs than before."""


@dataclass
class OpenRun(Message):
    """Show a run."""

    path: str


class OpenStart(Message):
    """Show the presets to train."""


@dataclass
class OpenGenerate(Message):
    """Show the control-token picker of a run's model."""

    run: str


@dataclass
class StartRun(Message):
    """Train a preset, changed by ``key=value`` assignments, as a new run."""

    preset: str
    name: str
    assignments: Sequence[str]


@dataclass
class StopRun(Message):
    """Stop a run; it saves a checkpoint."""

    path: str


@dataclass
class ResumeRun(Message):
    """Continue a run that stopped."""

    path: str


@dataclass
class Generate(Message):
    """Send a record (docs/generate-serve.md) to the process that holds the model of a run."""

    run: str
    record: Mapping[str, Any]
