"""The dashboard: watch runs, pick control tokens, see the cells.

Reads run folders and starts other processes; imports textual, numpy and `core.runlog`, never torch.
"""
