"""Files of generated cells are read, also those that an older tfx wrote."""

import numpy as np

from core.generation.cell_generator import GENERATION_KEY, generate_cells
from core.generation.request import GenerationRequest
from core.inference.evaluate_generated import read_generated
from tests.generation.examples import with_reference
from tests.model.examples import make_cell_model


def test_a_file_of_tfx_0_1_0_is_read(tmp_path):
    """Its provenance has the keys depth, order and remask, and not genes_per_cell."""
    model = with_reference(make_cell_model())
    cells, _ = generate_cells(model, GenerationRequest({"sex": "female"}, 6))
    facts = cells.uns[GENERATION_KEY]
    facts |= {"depth": facts.pop("genes_per_cell"), "order": "random", "remask": 0.0}
    cells.write_h5ad(tmp_path / "old.h5ad")
    found = read_generated(model, [str(tmp_path / "old.h5ad")])
    assert found.requests == [{0: 0}]
    assert (found.codes[:, 0] == 0).all()
    np.testing.assert_array_equal(found.expression.toarray(), cells.X.toarray())
