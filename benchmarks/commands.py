"""The commands of tfx, called in this process."""

import contextlib
import io
import json
import time

from tfx_cli.app import run


def call(*arguments: str) -> dict:
    """Run a tfx command; return its JSON, and the seconds it took by the clock and of the processor."""
    out = io.StringIO()
    clock, processor = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(out):
        code = run([*arguments, "--json"])
    if code:
        raise SystemExit(f"tfx {' '.join(arguments)} ended with {code}")
    return {
        **json.loads(out.getvalue()),
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
    }
