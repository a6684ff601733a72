import numpy as np

from core.cells.normalisation import count_scales, log_normalise


def test_log_values_are_in_the_type_of_the_totals_and_empty_cells_stay_empty():
    totals = np.array([100, 0], dtype=np.float32)
    scales = count_scales(totals)
    assert scales.tolist() == [100.0, np.inf]
    values = log_normalise(np.array([3, 7], dtype=np.uint16), scales[[0, 0]])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.log1p(np.array([300, 700], dtype=np.float32)))
