"""Checks of cells before compute is spent: `tfx check`, and what prepare and train check first.

`survey` reads the files; `check` puts together the families of checks, which are functions from
what was read to rows: `value_rows`, `gene_rows`, `phenotype_rows`, `donor_rows`.
"""
