"""What similar cells are: the k nearest training cells in principal components.

How most annotation by label transfer works, without batch correction.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["nearest_neighbours"]

#: scanpy's defaults: 50 components, 15 neighbours.
_N_COMPONENTS = 50
_N_NEIGHBOURS = 15


def nearest_neighbours(
    train_x: sparse.csr_matrix,
    train_codes: NDArray[np.int64],
    test_x: sparse.csr_matrix,
    seed: int,
) -> NDArray[np.float64]:
    """Give each value its share of a cell's neighbours; see `core.evaluation.baselines.Fit`.

    Components are those of the training cells, log values centred, not scaled; neighbours count
    alike.
    """
    from sklearn.decomposition import PCA  # 500 ms
    from sklearn.neighbors import KNeighborsClassifier

    n_components = min(_N_COMPONENTS, train_x.shape[1], train_x.shape[0])
    # arpack takes the mean off without making the matrix dense, but cannot give all components.
    is_whole = n_components >= min(train_x.shape)
    x: Any = train_x.astype(np.float64)
    scored_x: Any = test_x.astype(np.float64)
    if is_whole:
        x, scored_x = x.toarray(), scored_x.toarray()
    components = PCA(
        n_components, svd_solver="full" if is_whole else "arpack", random_state=seed
    ).fit(x)
    neighbours = KNeighborsClassifier(min(_N_NEIGHBOURS, train_x.shape[0]), algorithm="brute")
    neighbours.fit(components.transform(x), train_codes)
    shares: NDArray[np.float64] = neighbours.predict_proba(components.transform(scored_x))
    return shares
