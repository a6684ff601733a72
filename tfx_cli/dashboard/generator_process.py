"""The child that generates: `tfx generate --serve`, spoken to in JSON lines (docs/generate-serve.md).

Loading torch takes seconds and a model may take all memory, so that neither may happen in the
process that draws the window. The child stays warm until the model changes or the dashboard ends.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["GeneratorProcess"]

#: A profile of 2,000 genes is some hundred kilobytes.
_LONGEST_LINE = 64 * 2**20
_GRACE = 3.0


class GeneratorProcess:
    """A warm child with one model.

    Parameters
    ----------
    model
        The run or model folder.
    on_event
        Hears every event, as a dictionary with "event"; {"event": "exit", "message": ...} last.
    command
        What to start, for tests.
    """

    def __init__(
        self,
        model: str,
        on_event: Callable[[dict[str, Any]], None],
        *,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self._on_event = on_event
        self._command = command or (
            sys.executable, "-m", "tfx_cli", "generate", "--serve", "--run", model,
        )  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._said: list[str] = []

    @property
    def is_running(self) -> bool:
        """Whether the child lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the child; it says "loading" and then "ready"."""
        if self.is_running:
            return
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # Ctrl-C in the terminal is not for the child
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def send(self, record: Mapping[str, Any]) -> None:
        """Send one request."""
        await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps(record).encode() + b"\n")
            await self._process.stdin.drain()

    def terminate(self) -> None:
        """Ask the child to end."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self) -> None:
        """End the child: SIGTERM, and after some seconds for good."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self.terminate()
            try:
                await asyncio.wait_for(process.wait(), _GRACE)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reading is not None:
            await self._reading
        self._process = self._reading = None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        narration = asyncio.create_task(self._listen(process.stderr))
        try:
            async for line in process.stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and isinstance(event.get("event"), str):
                        self._on_event(event)
        except ValueError:  # a line beyond all limits
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        await narration
        message = "" if code in (0, -15) else self._last_words(code)
        self._on_event({"event": "exit", "code": code, "message": message})

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):
            async for line in stream:
                self._said = [*self._said[-20:], line.decode("utf-8", "replace").rstrip()]

    def _last_words(self, code: int) -> str:
        errors = [line for line in self._said if line.startswith("Error:")]
        said = (errors or [line for line in self._said if line] or [""])[-1]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the generating process {how}" + (
            f": {said.removeprefix('Error: ')}" if said else ""
        )
