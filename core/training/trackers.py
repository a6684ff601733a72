"""Copies of a run's metrics to TensorBoard, W&B, MLflow or trackio, by accelerate's trackers.

The run folder is the record; these are copies. A tracker that is not installed is refused before
the run, one that fails later is warned of once and dropped.
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from core.errors import MachineError

__all__ = ["Trackers", "check_trackers"]

logger = logging.getLogger(__name__)

#: Folder of TensorBoard's files, inside the run folder.
TENSORBOARD_FOLDER = "tensorboard"
#: Project that runs are grouped under, where a tracker knows projects.
_PROJECT = "tfx"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before anything else is done.

    Raises
    ------
    MachineError
        The message says what to install.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"train.trackers names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed; pip install {' '.join(missing)}, or leave it out"
        )
        raise MachineError(message)


class Trackers:
    """The trackers of a run that still work.

    Parameters
    ----------
    trackers
        Name -> accelerate's tracker, started.
    on_drop
        Called with the name of one that failed, and why.
    """

    def __init__(self, trackers: dict[str, Any], on_drop: Callable[[str, str], None]) -> None:
        self._trackers, self._on_drop = trackers, on_drop

    @classmethod
    def start(
        cls,
        names: Sequence[str],
        *,
        run_name: str,
        folder: Path,
        config: Mapping[str, object],
        on_drop: Callable[[str, str], None] = lambda _name, _reason: None,
    ) -> Self:
        """Start trackers by name; those that cannot be started are dropped.

        Parameters
        ----------
        names
            Of ``train.trackers``.
        run_name, folder
            The run, and its folder, in which TensorBoard's files go.
        config
            What is known of the run: plain values are handed on.
        """
        self = cls({}, on_drop)
        plain = {
            name: value for name, value in config.items() if isinstance(value, str | int | float)
        }
        for name in names:
            with _Dropping(self, name):
                tracker = _make(name, run_name, folder)
                self._trackers[name] = tracker
                tracker.start()
                tracker.store_init_configuration(plain)
        return self

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a split at a step, as ``train/loss`` and so on.

        The step is among the values as well (``step``): a tracker that counts for itself goes wrong
        where a resumed run does some steps again.
        """
        copies = {f"{split}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._trackers.items()):
            with _Dropping(self, name):
                tracker.log({**copies, "step": step}, step=step)

    def close(self) -> None:
        """Let the trackers finish."""
        for name, tracker in list(self._trackers.items()):
            with _Dropping(self, name):
                tracker.finish()
        self._trackers.clear()

    def drop(self, name: str, error: BaseException) -> None:
        """Go on without a tracker, and say so."""
        self._trackers.pop(name, None)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("tracker %s failed (%s); the run goes on without it", name, reason)
        self._on_drop(name, reason)


class _Dropping:
    """Drops a tracker that raises in the block; Ctrl-C passes."""

    def __init__(self, trackers: Trackers, name: str) -> None:
        self._trackers, self._name = trackers, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        # Exception, and what a library raises to leave by (wandb: SystemExit's kin); not Ctrl-C.
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        self._trackers.drop(self._name, error)
        return True


def _make(name: str, run_name: str, folder: Path) -> Any:  # noqa: ANN401 (accelerate is untyped)
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(run_name=".", logging_dir=str(folder / TENSORBOARD_FOLDER))
    if name == "wandb":
        return kind(_PROJECT, name=run_name, dir=str(folder))
    if name == "trackio":
        return kind(_PROJECT, name=run_name)
    return kind(_PROJECT, run_name=run_name)  # mlflow: the experiment, and the run in it
