"""What `tfx interactions` and `tfx perturb` keep of a result in the run folder, for the dashboard and other readers.

A record is small and complete: the strongest edges and a heat map, or the genes and phenotypes that respond. The
files that the user named hold everything; the record has their paths. No torch here: the dashboard reads records.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

from pydantic import BeforeValidator, TypeAdapter

from core.files import file_json, plain_json, replace_file
from core.runlog.json_lines import finite_number

#: Folder of the records in a run folder, and of the files that the dashboard makes.
FOLDER = "interactions"
#: Edges of a network, genes of a heat map, and genes of a perturbation that a record has at most.
KEPT_EDGES, KEPT_GENES, KEPT_RESPONSES = 200, 40, 200
_LARGEST_RECORD = 4 * 10**6  # bytes


def _or_nan(value: object) -> float:
    number = finite_number(value)
    return math.nan if number is None else number


#: A number; NaN is null in JSON.
Number = Annotated[float, BeforeValidator(_or_nan)]


@dataclass(frozen=True)
class Edge:
    """An edge of a network."""

    source: str
    target: str
    weight: Number
    q: Number = math.nan


@dataclass(frozen=True)
class HeatMap:
    """Weights among the genes of largest weight, neighbours alike."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    #: (sources, targets), NaN without an edge.
    weights: tuple[tuple[Number, ...], ...]

    def __post_init__(self) -> None:
        """Check the shape of what was read."""
        if [len(row) for row in self.weights] != [len(self.targets)] * len(self.sources):
            raise ValueError("the weights have not a row per source and a column per target")


@dataclass(frozen=True)
class KeptNetwork:
    """The network of a context, or the difference of two."""

    context: str
    cells: int
    donors: int
    #: The measure that is the weight, in words.
    measure: str
    #: Whether it is a simple measure, and not the model's effect.
    is_baseline: bool
    #: Edges with q < 0.05.
    found: int
    edges: tuple[Edge, ...]
    heat_map: HeatMap | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Response:
    """A gene that responds to a perturbation, or whose change a screen tried."""

    gene: str
    before: Number
    shift: Number
    q: Number


@dataclass(frozen=True)
class PhenotypeResponse:
    """The mean predicted probability of a value, before and after."""

    phenotype: str
    value: str
    before: Number
    after: Number
    q: Number


@dataclass(frozen=True)
class KeptPerturbation:
    """The response to a perturbation, or a screen of all genes."""

    #: What was changed, or which probability a screen is about.
    perturbation: str
    is_screen: bool
    context: str
    cells: int
    donors: int
    found: int
    genes: tuple[Response, ...]
    phenotypes: tuple[PhenotypeResponse, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptResult:
    """A result of one command."""

    command: Literal["interactions", "perturb"]
    #: When it was written, in seconds since 1970.
    t: float
    #: Absolute paths of the files.
    output: tuple[str, ...]
    simulated: bool = False
    networks: tuple[KeptNetwork, ...] = ()
    perturbation: KeptPerturbation | None = None


_RESULT = TypeAdapter(KeptResult)


def keep_result(
    run: Path, command: str, output: Sequence[Path], record: Mapping[str, Any]
) -> Path | None:
    """Keep a result in a run folder, in place of an earlier one of the same files; None if it cannot be written."""
    paths = [str(path.absolute()) for path in output]
    name = f"{command}-{output[0].stem[:60]}-{crc32(paths[0].encode()):08x}.json"
    whole = {"command": command, "t": time.time(), "output": paths, **record}
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        replace_file(run / FOLDER / name, json.dumps(plain_json(whole), separators=(",", ":")))
    except OSError:
        return None
    return run / FOLDER / name


def read_results(run: Path) -> list[KeptResult]:
    """Return the results that are kept in a run folder, the newest first; a file that is none is left out."""
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            if path.stat().st_size <= _LARGEST_RECORD:
                found.append(_RESULT.validate_python(file_json(path)))
        except (OSError, ValueError, RecursionError):
            continue
    return sorted(found, key=lambda one: -one.t)
