"""tfx in Python: train masked language models of single cells, and use them on AnnData objects.

    import transformerics as tfx

    model = tfx.train("cells.toml", "runs/cells")  # or tfx.CellModel.load("runs/cells/model")
    adata = tfx.predict(model, adata)  # obs["tfx_cell_type"], ...
    cells = tfx.generate(model, {"tissue": "lung"}, 500)

The import is quick: torch and the rest are loaded with the first name that needs them.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.cells.store import Store
    from core.model.folder import CellModel
    from transformerics.workflow import (
        edit,
        embed,
        evaluate,
        generate,
        interactions,
        perturb,
        predict,
        screen,
        train,
    )

__all__ = ["CellModel", "Store", "edit", "embed", "evaluate", "generate", "interactions", "perturb"]
__all__ += ["predict", "screen", "train"]

_MODULES = {"CellModel": "core.model.folder", "Store": "core.cells.store"}


def _check_own_packages() -> None:
    """Raise where a folder of the user's, called core or presets, hides the package of that name."""
    for name in ("core", "presets"):
        found = importlib.util.find_spec(name)
        places = [] if found is None else list(found.submodule_search_locations or [])
        if not places or Path(places[0]).parent.resolve() != Path(__file__).parent.parent.resolve():
            where = places[0] if places else "nowhere"
            raise ImportError(
                f"Python finds the package '{name}' of transformerics at {where}, not beside "
                f"transformerics; rename your folder, or put it last in sys.path (docs/python.md)"
            )


_check_own_packages()


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'transformerics' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES.get(name, "transformerics.workflow")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
