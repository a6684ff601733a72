"""Interactions of genes: what a model learnt of each ordered pair, its nulls, and simple methods beside it."""
