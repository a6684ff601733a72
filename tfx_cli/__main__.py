"""`python -m tfx_cli` is `tfx`; launchers and the dashboard start their processes this way."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python has put the current folder first: a user's own "core" or "presets" would hide ours.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).parents[1]:
        del sys.path[0]
    from tfx_cli.app import main

    main()
