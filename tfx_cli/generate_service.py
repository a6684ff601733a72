"""`tfx generate --serve`: a child process that keeps the model in memory for request after request.

JSON lines: requests on stdin, events on stdout (docs/generate-serve.md). Anything else that a library
prints to stdout goes to stderr, so that every line of stdout is an event.
"""

import contextlib
import functools
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
from core.presets.schema import GenerateSettings
from core.progress import ProgressEvent
from core.renamed import current_section, notes_on_keys
from tfx_cli.arguments import check_output, name_of_option, phenotype_arguments

if TYPE_CHECKING:
    from scipy import sparse

    from core.cells.store import Store
    from core.model.folder import CellModel

#: Least time between two progress events.
_PROGRESS_SECONDS = 0.1
#: Combinations of phenotypes whose training cells "ready" lists, commonest first.
_MOST_COMBINATIONS = 5_000
#: Most cells of a request without a file.
_MOST_IN_MEMORY = 20_000
#: Requests whose real cells are kept.
_KEPT_REAL = 8

Emit = Callable[[dict[str, Any]], None]


class ServedRequest(BaseModel):
    """One line of stdin; its sampling settings are checked against the model's (`_checked`)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: int | str
    request: dict[str, str] = {}
    cells: int | None = Field(None, ge=1)
    balance: str | None = None
    library_size: float | None = Field(None, gt=0.0)
    seed: int = Field(0, ge=0)
    unspecified: Literal["sample", "none"] = "sample"
    output: str | None = None
    overwrite: bool = False

    def command_line(self, folder: Path, n_cells: int, sampling: dict[str, Any]) -> str:
        """Return the command that writes the same cells."""
        words = ["tfx", "generate", "--run", str(folder), *phenotype_arguments(self.request)]
        words += ["-n", str(n_cells), "--seed", str(self.seed)]
        options = {"balance": self.balance, **sampling, "library_size": self.library_size}
        if self.unspecified != "sample":
            options["unspecified"] = self.unspecified
        for name, value in options.items():
            words += [] if value is None else [name_of_option(name), str(value)]
        return shlex.join([*words, "-o", self.output or "generated.h5ad"])


class _CancelledError(Exception):
    """The request was cancelled while its cells were drawn."""


def serve_stdin(folder: Path) -> None:
    """Serve the model in ``folder`` on this process's stdin and stdout until EOF or SIGTERM."""
    events = sys.stdout

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)  # so that half-written files are removed

    before = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            serve(folder, _lines_of(sys.stdin.fileno()), lambda event: _write_event(events, event))
    except BrokenPipeError:
        pass  # the reader is gone
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines_of(descriptor: int) -> Iterator[str]:
    """Read lines without Python's buffer, whose lock a waiting thread would hold at exit."""
    rest = b""
    while chunk := os.read(descriptor, 65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _write_event(stream: TextIO, event: dict[str, Any]) -> None:
    # ASCII and one line: no encoding of a terminal and no unusual line end breaks the protocol.
    stream.write(json.dumps(plain_json(event), allow_nan=False) + "\n")
    stream.flush()


def serve(folder: Path, lines: Iterable[str], emit: Emit) -> None:
    """Load the model once and serve requests in the order they arrive, by calls of ``emit``.

    After the last line the requests that wait are still served. An error of loading is an "error"
    event, and raised as well.
    """
    emit({"event": "loading", "model": str(folder)})
    try:
        # torch and transformers, 3 s: after the first event.
        from core.model.folder import CellModel

        service = _Service(folder, CellModel.load(folder), emit)
    except TfxError as error:
        emit({"event": "error", "id": None, "message": str(error)})
        raise
    emit(service.ready())
    for line in _read_ahead(lines, service):
        service.serve_line(line)


def _read_ahead(lines: Iterable[str], service: "_Service") -> Iterator[str]:
    """Yield the lines while a thread reads on, so that a cancellation arrives during the work."""
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
    """The loaded model and the training store, if it is still in its place."""

    def __init__(self, folder: Path, model: "CellModel", emit: Emit) -> None:
        from core.generation.cell_generator import check_can_generate
        from core.generation.comparison import open_training_store

        self._folder, self._model, self._emit = folder, model, emit
        self._notes = check_can_generate(model, model.generate)
        self._store: Store | None = open_training_store(model)
        self._real_cells = functools.lru_cache(maxsize=_KEPT_REAL)(self._read_real)
        self._cancelled: set[int | str] = set()

    def ready(self) -> dict[str, Any]:
        """Return the event that describes the model."""
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
        """Mark a request as cancelled if the line says so."""
        try:
            record = json.loads(line)
        except ValueError:
            return False
        if not isinstance(record, dict) or set(record) != {"cancel"}:
            return False
        if isinstance(record["cancel"], int | str):
            self._cancelled.add(record["cancel"])
        return True

    def serve_line(self, line: str) -> None:
        """Serve one line of stdin; an error of the request is an event, too."""
        number: Any = None
        try:
            record = json.loads(line)
            number = record.get("id") if isinstance(record, dict) else None
            self._emit(self._generate(record))
        except BrokenPipeError:
            raise
        except _CancelledError:
            self._emit({"event": "cancelled", "id": number})
        except (ValueError, TfxError, OSError, MemoryError) as error:
            self._emit({"event": "error", "id": number, "message": _message_of(error)})

    def _generate(self, record: object) -> dict[str, Any]:
        from core.evaluation.fidelity.measures import compare_cells
        from core.generation.cell_generator import BIN_NUMBERS, CellGenerator, generate_cells
        from core.generation.cell_sizes import log_values
        from core.generation.comparison import MAX_COMPARED, profile_cells
        from core.generation.generated_file import (
            discard_partial,
            read_first_cells,
            write_generated,
        )
        from core.generation.request import GenerationRequest, cells_to_generate, changed_settings

        served, sampling, old_names = _checked(record)
        output = None if served.output is None else Path(served.output)
        if output is not None:
            check_output(output, (".h5ad",), what="cells", overwrite=served.overwrite)
        model = self._model
        request = GenerationRequest(
            served.request,
            cells_to_generate(model, served.request, served.cells, served.balance),
            settings=changed_settings(model.generate, sampling),
            **served.model_dump(include={"unspecified", "seed", "library_size", "balance"}),
        )
        n_cells = request.n_cells
        began = time.monotonic()
        source = CellGenerator(model, request)
        progress = self._progress(served.id)
        if output is None:
            if n_cells > _MOST_IN_MEMORY:
                raise ConfigurationError(
                    f"more than {_MOST_IN_MEMORY:,} cells need a file; give an output"
                )
            cells, _ = generate_cells(model, request, on_progress=progress)
            expression = cells.X
            if request.settings.decode == "counts":
                expression = log_values(expression, cells.obs["library_size"].to_numpy())
        else:
            try:
                write_generated(source, output, restart=served.overwrite, on_progress=progress)
            except _CancelledError:
                discard_partial(output)
                raise
            expression = read_first_cells(output, MAX_COMPARED)
        seconds = time.monotonic() - began
        notes = [*old_names, *source.notes]
        real, which = None, None
        if source.values == BIN_NUMBERS:
            notes.append("bin numbers are not compared with real cells")
        elif (found := self._real_cells(*sorted(source.phenotypes.wanted.items()))) is not None:
            real, which = found
        else:
            notes.append("there are no real cells of this request to compare with")
        profile = profile_cells(expression, real, model.panel)
        if real is not None:
            profile["fidelity"] = compare_cells(real, expression, model.panel).to_dict()
        profile |= {
            "training_cells": source.phenotypes.n_training,
            "real_cells": 0 if real is None else real.shape[0],
            "compared_with": which,
            "notes": notes,
            "command": served.command_line(self._folder, n_cells, sampling),
        }
        return {
            "event": "cells",
            "id": served.id,
            "output": None if output is None else str(output),
            "cells": n_cells,
            "seconds": round(seconds, 3),
            "profile": profile,
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

    def _read_real(self, *wanted: tuple[int, int]) -> "tuple[sparse.csr_matrix, str] | None":
        """Return real cells of the requested phenotypes, slot and code, if the store has any."""
        from core.generation.comparison import read_real_cells

        store = self._store
        return None if store is None else read_real_cells(self._model, store, dict(wanted))


def _checked(record: object) -> tuple[ServedRequest, dict[str, Any], list[str]]:
    """Return a request, the sampling settings that it gives, and sentences about old names."""
    if not isinstance(record, dict):
        raise ConfigurationError("a request must be a JSON object")
    notes = notes_on_keys("generate", record)
    record = current_section("generate", record)
    known = GenerateSettings.model_fields
    sampling = {name: record.pop(name) for name in [*record] if name in known}
    try:
        served = ServedRequest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"request: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        ) from None
    return served, {name: value for name, value in sampling.items() if value is not None}, notes


def _message_of(error: Exception) -> str:
    if isinstance(error, TfxError):
        return str(error)
    if isinstance(error, ValueError):
        return f"a request is one JSON object a line ({error})"
    reason = getattr(error, "strerror", None) or "there is not enough memory"
    return f"the cells cannot be made or written: {reason}"
