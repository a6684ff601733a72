"""`tfx generate --serve`: a child process that keeps the model in memory for request after request.

JSON lines: requests on stdin, events on stdout (docs/generate-serve.md). Anything else that a library
prints to stdout goes to stderr, so that every line of stdout is an event. No line can end the server: what
is wrong with it becomes an "error" event.
"""

import contextlib
import functools
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from core.errors import ConfigurationError, TfxError
from core.files import plain_json
from core.presets.schema import GenerateSettings
from core.progress import Listener, ProgressEvent, ignore_progress, to_all
from core.renamed import current_section, notes_on_keys
from core.runlog.schema import RUN_FILE
from core.runlog.work import work_on
from core.wording import size, visible
from tfx_cli.arguments import check_output, generating_command, load_model
from tfx_cli.exit_codes import explain

if TYPE_CHECKING:
    from scipy import sparse

    from core.cells.store import Store
    from core.generation.request import GenerationRequest
    from core.model.folder import CellModel

#: Least time between two progress events.
_PROGRESS_SECONDS = 0.1
#: Combinations of phenotypes whose training cells "ready" lists, commonest first.
_MOST_COMBINATIONS = 5_000
#: Most cells of a request without a file.
_MOST_IN_MEMORY = 20_000
#: Requests whose real cells are kept.
_KEPT_REAL = 8
#: Bytes of a line, and requests that wait.
_LONGEST_LINE, _MOST_WAITING = 10**6, 10_000
#: Characters of an error's message.
_LONGEST = 2_000

Emit = Callable[[dict[str, Any]], None]
_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Id = _Number | Annotated[str, StringConstraints(max_length=200)]
_ID = TypeAdapter[int | str](_Id, config=ConfigDict(strict=True))


class ServedRequest(BaseModel):
    """One line of stdin; its sampling settings are checked against the model's (`_checked`)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: _Id
    request: dict[str, str] = {}
    cells: int | None = Field(None, ge=1)
    balance: str | None = None
    set: dict[str, str] = {}
    library_size: float | None = Field(None, gt=0.0)
    seed: int = Field(0, ge=0, lt=2**63)
    unspecified: Literal["sample", "none"] = "sample"
    output: str | None = None
    overwrite: bool = False


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


def _lines_of(descriptor: int) -> Iterator[bytes]:
    """Read lines without Python's buffer, whose lock a waiting thread would hold at exit.

    Of a line that is too long just more than the longest is kept.
    """
    begun = bytearray()
    while chunk := os.read(descriptor, 65_536):
        first, *others = chunk.split(b"\n")
        begun += first[: _LONGEST_LINE + 1 - len(begun)]
        for line in others:
            yield bytes(begun)
            begun = bytearray(line)
    if begun:
        yield bytes(begun)


def _write_event(stream: TextIO, event: dict[str, Any]) -> None:
    # ASCII and one line: no encoding of a terminal and no unusual line end breaks the protocol.
    stream.write(json.dumps(plain_json(event), allow_nan=False) + "\n")
    stream.flush()


def serve(folder: Path, lines: Iterable[bytes], emit: Emit) -> None:
    """Load the model once and serve requests in the order they arrive, by calls of ``emit``.

    After the last line the requests that wait are still served. An error of loading is an "error"
    event, and raised as well.
    """
    emit({"event": "loading", "model": str(folder)})
    try:
        # torch and transformers, 3 s: after the first event.
        service = _Service(folder, load_model(folder), emit)
    except TfxError as error:
        emit({"event": "error", "id": None, "message": str(error)})
        raise
    emit(service.ready())
    requests = _Requests(lines)
    for one in requests:
        event = service.answer(one)
        requests.forget(one)  # first: with the event its id is free again
        emit(event)


@dataclass
class _Waiting:
    """A line of stdin: its record, or what is wrong with it; and the id that its events carry."""

    id: int | str | None = None
    record: dict[str, Any] | None = None
    problem: str = ""
    is_cancelled: bool = False


class _Requests:
    """The requests in the order of their lines, read by a thread so that a cancellation arrives during the work."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        #: Requests that wait or are served; an id names one of them at most.
        self._known: dict[int | str, _Waiting] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[_Waiting]:
        waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()

        def read() -> None:
            try:
                for line in self._lines:
                    if line.strip() and (one := self._taken(line)) is not None:
                        waiting.put(one)
            finally:
                waiting.put(None)

        threading.Thread(target=read, daemon=True).start()
        while (one := waiting.get()) is not None:
            yield one

    def forget(self, one: _Waiting) -> None:
        """Free the id of a request, so that a late cancellation meets nothing."""
        with self._lock:
            if one.id is not None and self._known.get(one.id) is one:
                del self._known[one.id]

    def _taken(self, line: bytes) -> _Waiting | None:
        """Return what is to be served; None for a cancellation, which is carried out at once."""
        try:
            record = _read_line(line)
        except ConfigurationError as error:
            return _Waiting(problem=str(error))
        with self._lock:
            if record.keys() == {"cancel"}:
                if _is_id(record["cancel"]) and record["cancel"] in self._known:
                    self._known[record["cancel"]].is_cancelled = True
                return None
            number = record.get("id")
            if not _is_id(number):
                return _Waiting(record=record)  # refused with all that is wrong
            if number in self._known:
                return _Waiting(
                    problem=f"a request of the id {number!r} is not answered yet; give another id"
                )
            if len(self._known) >= _MOST_WAITING:
                return _Waiting(number, problem=f"{_MOST_WAITING:,} requests wait; send fewer")
            self._known[number] = _Waiting(number, record)
            return self._known[number]


def _read_line(line: bytes) -> dict[str, Any]:
    if len(line) > _LONGEST_LINE:
        raise ConfigurationError(f"a line has at most {size(_LONGEST_LINE)}")
    try:
        record = json.loads(line.decode())
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeError:
        raise ConfigurationError("a request is UTF-8 text") from None
    except RecursionError:
        raise ConfigurationError("a request is one JSON object a line, not nested deeply") from None
    except ValueError as error:
        raise ConfigurationError(f"a request is one JSON object a line ({error})") from None
    if not isinstance(record, dict):
        raise ConfigurationError("a request must be a JSON object")
    return record


def _is_id(value: object) -> TypeGuard[int | str]:
    with contextlib.suppress(ValidationError):
        _ID.validate_python(value)
        return True
    return False


class _Service:
    """The loaded model and the training store, if it is still in its place."""

    def __init__(self, folder: Path, model: "CellModel", emit: Emit) -> None:
        from core.generation.cell_generator import check_can_generate
        from core.generation.comparison import open_training_store

        self._folder, self._model, self._emit = folder, model, emit
        self._notes = check_can_generate(model, model.generate)
        self._store: Store | None = open_training_store(model)
        #: The last request that changed nothing, its cells as they are compared, and those of another seed.
        self._unchanged: tuple[GenerationRequest, list[sparse.csr_matrix]] | None = None
        self._real_cells = functools.lru_cache(maxsize=_KEPT_REAL)(self._read_real)

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

    def answer(self, one: _Waiting) -> dict[str, Any]:
        """Return the last event of one line of stdin; an error of the request is an event, too."""
        try:
            if one.record is None:
                raise ConfigurationError(one.problem)
            if one.is_cancelled:
                raise _CancelledError
            with contextlib.ExitStack() as stack:
                show_work: Listener = ignore_progress
                if (self._folder.parent / RUN_FILE).is_file():
                    show_work = stack.enter_context(work_on(self._folder.parent, "generating"))
                return self._generate(one, one.record, show_work)
        except BrokenPipeError:
            raise
        except _CancelledError:
            return {"event": "cancelled", "id": one.id}
        except Exception as error:  # noqa: BLE001 - the next request is served whatever this one did
            message = str(error) if isinstance(error, TfxError) else explain(error)[0]
            return {"event": "error", "id": one.id, "message": visible(message, most=_LONGEST)}

    def _generate(
        self, one: _Waiting, record: dict[str, Any], show_work: Listener
    ) -> dict[str, Any]:
        from core.evaluation.fidelity.measures import compare_cells
        from core.generation.cell_generator import BIN_NUMBERS, CellGenerator
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
            changes=served.set,
            **served.model_dump(include={"unspecified", "seed", "library_size", "balance"}),
        )
        n_cells = request.n_cells
        began = time.monotonic()
        source = CellGenerator(model, request)
        progress = to_all(self._progress(one), show_work)
        if output is None:
            if n_cells > _MOST_IN_MEMORY:
                raise ConfigurationError(
                    f"more than {_MOST_IN_MEMORY:,} cells need a file; give an output"
                )
            expression = self._draw(request, progress)
        else:
            try:
                write_generated(source, output, restart=served.overwrite, on_progress=progress)
            except _CancelledError:
                discard_partial(output)
                raise
            expression = read_first_cells(output, MAX_COMPARED)
        expression = expression[:MAX_COMPARED]
        is_comparable = source.values != BIN_NUMBERS
        pairs = self._pairs(request, expression, progress) if is_comparable else None
        seconds = time.monotonic() - began
        notes = [*old_names, *source.notes]
        real, which = None, None
        if not is_comparable:
            notes.append("bin numbers are not compared with real cells")
        elif (found := self._real_cells(*sorted(source.phenotypes.wanted.items()))) is not None:
            real, which = found
        else:
            notes.append("there are no real cells of this request to compare with")
        profile = profile_cells(expression, real, model.panel)
        if real is not None:
            profile["fidelity"] = compare_cells(real, expression, model.panel).to_dict()
        profile |= {
            "values": source.values,
            "training_cells": source.phenotypes.n_training,
            "real_cells": 0 if real is None else real.shape[0],
            "compared_with": which,
            "notes": notes,
            "pairs": pairs,
            "command": generating_command(
                str(self._folder),
                served.model_dump() | sampling | {"cells": n_cells},
                served.output or "generated.h5ad",
            ),
        }
        return {
            "event": "cells",
            "id": served.id,
            "output": None if output is None else str(output),
            "cells": n_cells,
            "seconds": round(seconds, 3),
            "profile": profile,
        }

    def _draw(self, request: "GenerationRequest", progress: Listener) -> "sparse.csr_matrix":
        """Generate the cells of a request in memory, as they are compared: log values."""
        from core.generation.cell_generator import generate_cells
        from core.generation.cell_sizes import log_values

        cells, _ = generate_cells(self._model, request, on_progress=progress)
        if request.settings.decode == "counts":
            return log_values(cells.X, cells.obs["library_size"].to_numpy())
        return cells.X

    def _pairs(
        self, request: "GenerationRequest", expression: "sparse.csr_matrix", progress: Listener
    ) -> dict[str, Any] | None:
        """Compare the cells with the same cells before the change of the request, if it has one."""
        from core.generation.comparison import compare_pairs

        before = replace(request, changes={}, n_cells=expression.shape[0])
        known = self._unchanged
        if not request.changes:
            self._unchanged = before, [expression]
            return None
        if known is None or known[0] != before:
            self._unchanged = known = before, [self._draw(before, progress)]
        if len(known[1]) == 1:
            other = (before.seed + 1) % 2**63
            known[1].append(self._draw(replace(before, seed=other), progress))
        first, again = known[1]
        return compare_pairs(first, expression, again, self._model.panel)

    def _progress(self, one: _Waiting) -> Callable[[ProgressEvent], None]:
        last = 0.0

        def listen(event: ProgressEvent) -> None:
            nonlocal last
            if one.is_cancelled:
                raise _CancelledError
            now = time.monotonic()
            if now - last >= _PROGRESS_SECONDS or event.done == event.total:
                last = now
                done = {"event": "progress", "id": one.id, "done": event.done}
                self._emit(done | {"total": event.total})

        return listen

    def _read_real(self, *wanted: tuple[int, int]) -> "tuple[sparse.csr_matrix, str] | None":
        """Return real cells of the requested phenotypes, slot and code, if the store has any."""
        from core.generation.comparison import read_real_cells

        store = self._store
        return None if store is None else read_real_cells(self._model, store, dict(wanted))


def _checked(record: dict[str, Any]) -> tuple[ServedRequest, dict[str, Any], list[str]]:
    """Return a request, the sampling settings that it gives, and sentences about old names."""
    notes = notes_on_keys("generate", record)
    record = current_section("generate", record)
    known = GenerateSettings.model_fields
    sampling = {name: record.pop(name) for name in [*record] if name in known}
    try:
        served = ServedRequest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        if first["loc"][0] == "id" and first["type"] != "missing":
            where, what = "id", "must be a whole number, or a text of at most 200 characters"
        raise ConfigurationError(f"request: {where}: {what}") from None
    return served, {name: value for name, value in sampling.items() if value is not None}, notes
