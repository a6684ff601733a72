"""Which process of those that train together runs here, as the variables of its launcher describe it.

tfx (`--processes`), torchrun and accelerate set WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
What contradicts itself is refused before the cells are read; no torch is needed for that.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import ConfigurationError

#: Variable that holds the process number of the launcher of `tfx train --processes`.
LAUNCHER = "TFX_LAUNCHER"
_START = "start the processes by 'tfx train --processes N' or 'accelerate launch -m tfx_cli train'"
#: Whole numbers, and the least that makes sense; a LOCAL_RANK of -1 means none.
_LEAST = {
    "WORLD_SIZE": 1,
    "RANK": 0,
    "LOCAL_RANK": -1,
    "LOCAL_WORLD_SIZE": 1,
    "MASTER_PORT": 1,
    LAUNCHER: 1,
}
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
#: What the launchers of MPI set; accelerate would take some of them for its own.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_MPI_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "MPI_LOCAL")


@dataclass(frozen=True)
class LaunchedProcess:
    """Number of this process and of all; ``address`` is where they meet, HOST:PORT."""

    rank: int = 0
    count: int = 1
    address: str = ""


def launched_process() -> LaunchedProcess:
    """Return this process as its launcher describes it; ConfigurationError if the variables make no sense."""
    numbers = {name: _number(name, os.environ) for name in _LEAST}
    count, rank = numbers["WORLD_SIZE"] or 1, numbers["RANK"] or 0
    if count == 1:
        for name in _MPI_SIZES:
            if (_number(name, os.environ, least=0) or 1) > 1:
                raise ConfigurationError(
                    f"{name}={os.environ[name]} in the environment: tfx does not train under mpirun or "
                    f"srun's MPI; {_START}, or unset {name}"
                )
        if LAUNCHER in os.environ and "WORLD_SIZE" not in os.environ:
            raise ConfigurationError(
                f"{LAUNCHER} in the environment without WORLD_SIZE: it belongs to the processes of 'tfx "
                f"train --processes'; unset it"
            )
    elif missing := [name for name in _NEEDED if not os.environ.get(name)]:
        raise ConfigurationError(
            f"WORLD_SIZE={count} in the environment, but no {' and no '.join(missing)}; {_START}, or unset "
            f"WORLD_SIZE to train in one process"
        )
    if rank >= count:
        raise ConfigurationError(
            f"RANK={rank} in the environment, but WORLD_SIZE is {count}; {_START}, or unset both to train "
            f"in one process"
        )
    address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    return LaunchedProcess(rank, count, address if count > 1 else "")


def _number(name: str, environment: Mapping[str, str], *, least: int | None = None) -> int | None:
    if name not in environment:
        return None
    try:
        number = int(environment[name])
    except ValueError:
        number = -2
    least = _LEAST[name] if least is None else least
    if number < least or (name == "MASTER_PORT" and number > 65_535):
        raise ConfigurationError(
            f"{name}={environment[name]!r} in the environment is not a whole number that fits; {_START}, "
            f"or unset it"
        )
    return number


@contextmanager
def hidden_variables(process: LaunchedProcess) -> Iterator[None]:
    """Hide from accelerate what does not describe the run: variables of MPI, and all in one process alone."""
    names = [name for name in os.environ if name.startswith(_MPI_PREFIXES)]
    if process.count == 1:
        names += [*_NEEDED, "WORLD_SIZE", "LOCAL_WORLD_SIZE"]
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
