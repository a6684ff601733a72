"""Whether this machine is fit for tfx, for `tfx doctor`.

Heavy imports happen inside the check that tries them, so that a broken installation becomes a row
of the report instead of ending it.
"""
