"""Prepare a store: from the files of a preset to a folder that training reads."""

from core.cells.prepare.pipeline import ensure_store, find_store, prepare_store, store_path

__all__ = ["ensure_store", "find_store", "prepare_store", "store_path"]
