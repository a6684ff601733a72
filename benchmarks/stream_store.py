"""Stream one epoch of a store: masked batches of 128 cells over the whole genome, at most 2,048 tokens.

python benchmarks/stream_store.py STORE             last line one JSON object
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from core.cells.store import Store
from core.encoding.batches import BatchEncoder
from core.encoding.loader import BatchLoader, BatchSource
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

EDGES = np.linspace(0.1, 9, 9, dtype=np.float32)


def main() -> None:
    store = Store.open(Path(sys.argv[1]))
    tokens = TokenSpace(store.phenotypes, len(store.genes), len(EDGES) + 1, layout="expressed")
    encoder = BatchEncoder(tokens, ValueEncoder("binned", EDGES), max_length=2_048)
    reader = PanelReader(store, store.panel(len(store.genes)))
    sampler = BlockSampler(np.arange(store.n_cells), seed=0, batch_size=128)
    source = BatchSource(reader, encoder, sampler, MaskingSettings())
    seen = np.zeros(store.n_cells, dtype=bool)
    n_tokens = 0
    began = time.perf_counter()
    with BatchLoader(source, sampler.start) as loader:
        for _ in range(sampler.steps(0)):
            loaded = loader.next()
            assert not seen[loaded.rows].any(), "a cell came twice in an epoch"
            seen[loaded.rows] = True
            n_tokens += len(loaded.batch.token_id)
    seconds = time.perf_counter() - began
    n_cells = int(seen.sum())
    figures = {
        "cells": n_cells,
        "of_cells": store.n_cells,
        "tokens_per_cell": n_tokens / n_cells,
        "cells_per_second": n_cells / seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
