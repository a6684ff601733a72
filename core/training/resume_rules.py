"""Which keys of a preset may change when a run goes on, and which are frozen with its first step."""

from typing import Any

from core.errors import ConfigurationError
from core.presets.schema import Preset
from core.runlog.settings import dotted_values

__all__ = ["check_changes", "preset_differences"]

#: Keys, and whole sections, that mean neither other cells nor another model nor another question.
CHANGEABLE = frozenset(
    {
        "name",
        "generate",
        "data.store",  # the same cells in another place; the run checks the store's key
        "model.attention",
        "train.compile",
        "train.device",
        "train.epochs",
        "train.eval_steps",
        "train.gradient_clip",
        "train.keep_checkpoints",
        "train.learning_rate",
        "train.log_steps",
        "train.max_nonfinite",
        "train.max_steps",
        "train.micro_batches",
        "train.patience",
        "train.precision",
        "train.save_steps",
        "train.schedule",
        "train.log_linear_learning_rate",
        "train.log_linear_weight_decay",
        "train.trackers",
        "train.warmup_ratio",
        "train.weight_decay",
    }
)


def preset_differences(before: Preset, after: Preset) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (value before, value after) of the keys that differ."""
    one, two = dotted_values(before.model_dump()), dotted_values(after.model_dump())
    return {
        key: (one.get(key), two.get(key))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    }


def check_changes(before: Preset, after: Preset, *, where: str) -> dict[str, tuple[Any, Any]]:
    """Return the differences, all of keys that may change.

    Raises
    ------
    ConfigurationError
        A frozen key differs; the message lists each with both values.
    """
    differences = preset_differences(before, after)
    frozen = [
        f"{key} = {old!r}, not {new!r}"
        for key, (old, new) in differences.items()
        if not CHANGEABLE.intersection((key, key.partition(".")[0]))
    ]
    if frozen:
        message = (
            f"{where} cannot go on with another preset: its {'; its '.join(frozen)}; leave that as "
            f"it is, or train the changed preset as a new run"
        )
        raise ConfigurationError(message)
    return differences
