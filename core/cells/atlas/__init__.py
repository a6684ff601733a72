"""The simulated human atlas: donors, tissues, cell types, diseases and genes with known truth.

These are NOT real cells: the AnnData says so in obs, var and uns. The tables are CSV files beside
the modules: `biology` reads them, `simulation` chooses donors and cells, `sampling` draws counts.
"""
