"""`tfx generate --serve`: a child process that keeps the model warm and answers request after request.

JSON lines: requests on stdin, events on stdout (docs/generate-serve.md). Whatever else a library
prints to stdout goes to stderr, so that every line of stdout is an event.
"""

import contextlib
import json
import os
import queue
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError, TfxError
from core.files import plain_json
from core.progress import ProgressEvent
from tfx_cli.options import phenotype_arguments
from tfx_cli.output_files import check_output

if TYPE_CHECKING:
    from scipy import sparse

    from core.cells.store import Store
    from core.model.folder import CellModel

__all__ = ["ServedRequest", "serve", "serve_stdin"]

#: Progress is told at most so often.
_PROGRESS_SECONDS = 0.1
#: Combinations of phenotypes that "ready" tells the training cells of, commonest first.
_MOST_COMBINATIONS = 5_000
#: Most cells of a request without a file.
_MOST_IN_MEMORY = 20_000
#: Requests whose real cells are kept.
_KEPT_REAL = 8

#: Keys of a request that are sampling settings.
_SAMPLING = (
    "steps", "method", "order", "schedule", "remask", "temperature", "guidance", "guidance_ramp",
    "genes_per_cell", "decode",
)  # fmt: skip

Emit = Callable[[dict[str, Any]], None]


class ServedRequest(BaseModel):
    """One request: a line of stdin."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: int | str
    request: dict[str, str] = {}
    cells: int | None = Field(None, ge=1)
    balance: str | None = None
    steps: int | None = Field(None, ge=1)
    method: Literal["auto", "unmask", "gibbs"] | None = None
    order: Literal["random", "confidence"] | None = None
    schedule: Literal["linear", "cosine"] | None = None
    remask: float | None = Field(None, ge=0.0, le=1.0)
    temperature: float | None = Field(None, gt=0.0)
    guidance: float | None = Field(None, ge=0.0)
    guidance_ramp: Literal["late", "none"] | None = None
    genes_per_cell: Literal["sample", "none"] | None = None
    decode: Literal["sample", "mean", "bins", "counts"] | None = None
    library_size: float | None = Field(None, gt=0.0)
    seed: int = Field(0, ge=0)
    unspecified: Literal["sample", "none"] = "sample"
    output: str | None = None
    overwrite: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings that were given."""
        given = {name: getattr(self, name) for name in _SAMPLING}
        return {name: value for name, value in given.items() if value is not None}

    def command_line(self, folder: Path, n_cells: int) -> str:
        """Return the command that writes the same cells."""
        words = ["tfx", "generate", "--run", str(folder), *phenotype_arguments(self.request)]
        words += ["-n", str(n_cells), "--seed", str(self.seed)]
        if self.balance is not None:
            words += ["--balance", self.balance]
        for name, value in self.sampling.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        if self.library_size is not None:
            words += ["--library-size", str(self.library_size)]
        if self.unspecified != "sample":
            words += ["--unspecified", self.unspecified]
        return shlex.join([*words, "-o", self.output or "generated.h5ad"])


class _CancelledError(Exception):
    """The request was taken back while its cells were drawn."""


def serve_stdin(folder: Path) -> None:
    """Serve the model in ``folder`` on this process's stdin and stdout until EOF or SIGTERM."""
    events = sys.stdout

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)  # not killed outright: half-written files are taken away

    before = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            serve(folder, _lines_of(sys.stdin.fileno()), lambda event: _write_event(events, event))
    except BrokenPipeError:
        pass  # nobody listens any more
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines_of(descriptor: int) -> Iterator[str]:
    """Read lines without Python's buffer, whose lock a thread that waits would hold at exit."""
    rest = b""
    while chunk := os.read(descriptor, 65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _write_event(stream: TextIO, event: dict[str, Any]) -> None:
    # ASCII, one line: no terminal's alphabet and no odd line end can break the protocol.
    stream.write(json.dumps(plain_json(event), allow_nan=False) + "\n")
    stream.flush()


def serve(folder: Path, lines: Iterable[str], emit: Emit) -> None:
    """Load the model once and answer requests in the order they came.

    Parameters
    ----------
    folder
        The model folder.
    lines
        Requests; where they end, what was asked before is still answered.
    emit
        Takes each event.

    Raises
    ------
    TfxError
        The model cannot be loaded or cannot generate; told as an "error" event too.
    """
    emit({"event": "loading", "model": str(folder)})
    try:
        # torch and transformers, 3 s: the listener hears of the loading first.
        from core.model.folder import CellModel

        service = _Service(folder, CellModel.load(folder), emit)
    except TfxError as error:
        emit({"event": "error", "id": None, "message": str(error)})
        raise
    emit(service.ready())
    for line in _read_ahead(lines, service):
        service.answer(line)


def _read_ahead(lines: Iterable[str], service: "_Service") -> Iterator[str]:
    """Yield the lines while a thread reads on, so that a cancellation is heard during the work."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in lines:
                if line.strip() and not service.cancel(line):
                    waiting.put(line)
        finally:
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := waiting.get()) is not None:
        yield line


class _Service:
    """The warm model, the training store where it is at hand, and how requests are answered."""

    def __init__(self, folder: Path, model: "CellModel", emit: Emit) -> None:
        from core.generation.comparison import open_training_store
        from core.generation.sampler import check_can_generate

        self._folder, self._model, self._emit = folder, model, emit
        self._notes = check_can_generate(model, model.generate)
        self._store: Store | None = open_training_store(model)
        self._real: dict[tuple[tuple[int, int], ...], tuple[sparse.csr_matrix, str] | None] = {}
        self._cancelled: set[int | str] = set()

    def ready(self) -> dict[str, Any]:
        """Return the event that says what the model knows."""
        import numpy as np

        config, reference = self._model.config, self._model.reference
        commonest = np.argsort(-reference.counts, kind="stable")[:_MOST_COMBINATIONS]
        return {
            "event": "ready",
            "model": str(self._folder),
            "name": str(self._model.provenance.get("name", "")),
            "step": self._model.provenance.get("step"),
            "simulated": bool(self._model.provenance.get("simulated")),
            "genes": config.n_genes,
            "phenotypes": {name: list(values) for name, values in config.phenotypes.items()},
            "training_cells": {
                name: [reference.n_cells({slot: code}) for code in range(len(values))]
                for slot, (name, values) in enumerate(config.phenotypes.items())
            },
            "combinations": {
                "codes": reference.combinations[commonest].tolist(),
                "counts": reference.counts[commonest].tolist(),
            },
            "defaults": self._model.generate.model_dump(),
            "real_cells": self._store is not None,
            "notes": self._notes,
        }

    def cancel(self, line: str) -> bool:
        """Note a request as taken back, if the line says so."""
        try:
            record = json.loads(line)
        except ValueError:
            return False
        if not isinstance(record, dict) or set(record) != {"cancel"}:
            return False
        if isinstance(record["cancel"], int | str):
            self._cancelled.add(record["cancel"])
        return True

    def answer(self, line: str) -> None:
        """Answer one line of stdin by events; a fault of the request is an event, too."""
        number: Any = None
        try:
            record = json.loads(line)
            number = record.get("id") if isinstance(record, dict) else None
            self._emit(self._generate(_checked(record)))
        except BrokenPipeError:
            raise
        except _CancelledError:
            self._emit({"event": "cancelled", "id": number})
        except ValueError as error:
            message = f"a request is one JSON object a line ({error})"
            self._emit({"event": "error", "id": number, "message": message})
        except TfxError as error:
            self._emit({"event": "error", "id": number, "message": str(error)})
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "there is not enough memory"
            message = f"the cells cannot be made or written: {reason}"
            self._emit({"event": "error", "id": number, "message": message})

    def _generate(self, asked: ServedRequest) -> dict[str, Any]:
        from core.generation.cells import BIN_NUMBERS, CellSource, generate_cells
        from core.generation.cells_file import discard_partial, read_first_cells, write_generated
        from core.generation.comparison import MAX_COMPARED
        from core.generation.counts import log_values
        from core.generation.profile import profile_cells
        from core.generation.request import GenerationRequest, cells_wanted

        output = None if asked.output is None else Path(asked.output)
        if output is not None:
            check_output(output, (".h5ad",), what="cells", overwrite=asked.overwrite)
        model = self._model
        n_cells = asked.cells or cells_wanted(model, asked.request, asked.balance)
        request = GenerationRequest(
            phenotypes=asked.request,
            n_cells=n_cells,
            unspecified=asked.unspecified,
            settings=model.generate.model_copy(update=asked.sampling),
            seed=asked.seed,
            library_size=asked.library_size,
            balance=asked.balance,
        )
        began = time.monotonic()
        source = CellSource(model, request)
        progress = self._progress(asked.id)
        if output is None:
            if n_cells > _MOST_IN_MEMORY:
                message = f"more than {_MOST_IN_MEMORY:,} cells need a file; give an output"
                raise ConfigurationError(message)
            cells, _ = generate_cells(model, request, on_progress=progress)
            expression = cells.X
            if request.settings.decode == "counts":
                expression = log_values(expression, cells.obs["library_size"].to_numpy())
        else:
            try:
                write_generated(source, output, restart=asked.overwrite, on_progress=progress)
            except _CancelledError:
                discard_partial(output)
                raise
            expression = read_first_cells(output, MAX_COMPARED)
        seconds = time.monotonic() - began
        wanted, notes = source.phenotypes.wanted, source.notes
        are_bins = source.provenance()["values"] == BIN_NUMBERS
        real = None if are_bins else self._real_cells(wanted)
        if are_bins:
            notes = [*notes, "bin numbers are not compared with real cells"]
        elif real is None:
            notes = [*notes, "there are no real cells of this request to compare with"]
        profile = profile_cells(expression, None if real is None else real[0], model.panel)
        return {
            "event": "cells",
            "id": asked.id,
            "output": None if output is None else str(output),
            "cells": n_cells,
            "seconds": round(seconds, 3),
            "profile": profile
            | {
                "training_cells": source.phenotypes.n_training,
                "real_cells": 0 if real is None else real[0].shape[0],
                "compared_with": None if real is None else real[1],
                "notes": notes,
                "command": asked.command_line(self._folder, n_cells),
            },
        }

    def _progress(self, number: int | str) -> Callable[[ProgressEvent], None]:
        last = 0.0

        def listen(event: ProgressEvent) -> None:
            nonlocal last
            if number in self._cancelled:
                self._cancelled.discard(number)
                raise _CancelledError
            now = time.monotonic()
            if now - last >= _PROGRESS_SECONDS or event.done == event.total:
                last = now
                done = {"event": "progress", "id": number, "done": event.done}
                self._emit(done | {"total": event.total})

        return listen

    def _real_cells(self, wanted: dict[int, int]) -> "tuple[sparse.csr_matrix, str] | None":
        """Real cells of the request, read once while the same is asked again."""
        from core.generation.comparison import read_real_cells

        key = tuple(sorted(wanted.items()))
        if self._store is not None and key not in self._real:
            if len(self._real) >= _KEPT_REAL:
                del self._real[next(iter(self._real))]
            self._real[key] = read_real_cells(self._model, self._store, wanted)
        return self._real.get(key)


def _checked(record: object) -> ServedRequest:
    """Check one request.

    Raises
    ------
    ConfigurationError
        It is no object, lacks its id, or a value is not what it must be.
    """
    if not isinstance(record, dict):
        message = "a request must be a JSON object"
        raise ConfigurationError(message)
    try:
        return ServedRequest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"request: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ConfigurationError(message) from None
