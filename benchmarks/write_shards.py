"""Write a shard with anndata again and again, as a baseline of `prepare.py`; prints its seconds as JSON.

    python benchmarks/write_shards.py SHARD FOLDER N COMPRESSION

Every file is synchronised with the disk once it is written, as a store's files are.
"""

import json
import os
import sys
import time
from pathlib import Path

import anndata


def main() -> None:
    shard, folder, n_files, compression = sys.argv[1:]
    adata = anndata.read_h5ad(shard)
    began = time.perf_counter()
    for number in range(int(n_files)):
        path = Path(folder) / f"written_{number}.h5ad"
        adata.write_h5ad(path, compression=None if compression == "none" else compression)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    print(json.dumps({"seconds": time.perf_counter() - began, "cells": adata.n_obs}))


if __name__ == "__main__":
    main()
