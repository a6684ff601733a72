"""What single genes say, each on its own: naive Bayes on which genes a cell has detected.

For every value the share of its training cells in which each gene is above zero; a test cell gets
the value under which its own pattern is most probable if genes were independent.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["gene_marginals"]


def gene_marginals(
    train_x: sparse.csr_matrix,
    train_codes: NDArray[np.int64],
    test_x: sparse.csr_matrix,
    seed: int,
) -> NDArray[np.float64]:
    """Fit Bernoulli naive Bayes, one cell added to each side; see `core.evaluation.baselines.Fit`."""
    from sklearn.naive_bayes import BernoulliNB  # 500 ms

    model = BernoulliNB(alpha=1.0, binarize=0.0).fit(train_x, train_codes)
    probabilities: NDArray[np.float64] = model.predict_proba(test_x)
    return probabilities
