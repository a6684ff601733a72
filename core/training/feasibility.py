"""What would refuse a preset on this machine, asked before cells are prepared or anything is written."""

import torch

from core.model.attention import AttentionRoute, resolve_attention
from core.presets.schema import Preset
from core.training.batch_source import cells_per_virtual_rank
from core.training.machine import Machine, choose_machine
from core.training.processes import launched_processes
from core.training.trackers import check_trackers
from core.training.virtual_ranks import virtual_ranks_of_process

__all__ = ["check_feasible"]


def check_feasible(
    preset: Preset, *, processes: int | None = None
) -> tuple[Machine, AttentionRoute]:
    """Choose device, precision and attention route, and refuse what cannot run with them.

    Parameters
    ----------
    preset
        The preset.
    processes
        That train together; None: as many as a launcher says, else one.

    Raises
    ------
    ConfigurationError
        The cells of a step cannot be shared by ``train.virtual_ranks``, or these by the processes.
    MachineError
        The device, the precision, the attention route or a tracker's package is not there.
    """
    machine = choose_machine(preset.train)
    route = resolve_attention(
        preset.model.attention,
        device=torch.device(machine.device),
        dtype=machine.dtype,
        dropout=preset.model.attention_dropout,
        ragged=preset.encoding.layout == "expressed",
    )
    check_trackers(preset.train.trackers)
    count = launched_processes() if processes is None else processes
    _, n_virtual_ranks = virtual_ranks_of_process(preset.train.virtual_ranks, index=0, count=count)
    cells_per_virtual_rank(preset.train, n_virtual_ranks)
    return machine, route
