"""The dashboard in a browser of this machine, through textual-serve."""

import shlex
import sys

from core.errors import MachineError

__all__ = ["serve"]


def serve(target: str | None, *, port: int, theme: str) -> None:
    """Serve the dashboard on 127.0.0.1 until Ctrl-C; every browser tab has a process of its own.

    Raises
    ------
    MachineError
        textual-serve is not installed.
    """
    try:
        from textual_serve.server import Server
    except ImportError:
        message = "--web needs textual-serve: pip install 'transformerics[web]'"
        raise MachineError(message) from None
    arguments = [sys.executable, "-m", "tfx_cli", "dashboard", *([target] if target else [])]
    command = shlex.join([*arguments, "--theme", theme])
    Server(command, host="127.0.0.1", port=port, title="tfx dashboard").serve()
