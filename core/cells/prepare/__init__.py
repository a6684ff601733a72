"""Prepare a store: from the files of a preset to a folder that training reads."""

from core.cells.prepare.pipeline import ensure_store, find_store, prepare_store, store_path
from core.cells.prepare.report import store_key

__all__ = ["ensure_store", "find_store", "prepare_store", "store_key", "store_path"]
