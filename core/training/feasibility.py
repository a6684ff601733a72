"""What would refuse a preset on this machine, asked before cells are prepared or anything is written."""

import torch

from core.model.attention import AttentionRoute, resolve_attention
from core.presets.schema import Preset
from core.training.batch_source import cells_per_lane
from core.training.lanes import lanes_of_process
from core.training.machine import DTYPES, Machine, choose_machine
from core.training.processes import launched_processes
from core.training.trackers import check_trackers

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
        The cells of a step cannot be shared by ``train.lanes``, or these by the processes.
    MachineError
        The device, the precision, the attention route or a tracker's package is not there.
    """
    machine = choose_machine(preset.train)
    route = resolve_attention(
        preset.model.attention,
        device=torch.device(machine.device),
        dtype=DTYPES[machine.precision],
        dropout=preset.model.attention_dropout,
        ragged=preset.encoding.layout == "expressed",
    )
    check_trackers(preset.train.trackers)
    count = launched_processes() if processes is None else processes
    _, n_lanes = lanes_of_process(preset.train.lanes, index=0, count=count)
    cells_per_lane(preset.train, n_lanes)
    return machine, route
