"""The training loop: batches in, a run folder out; can be stopped, or killed, at any moment.

`train` starts a run or continues one. What is learnt is in `core.model`, what is hidden in
`core.encoding`, one step in `train_step`; here are steps, evaluations, checkpoints and the run log.
Batch, masks and dropout are functions of the seed and a cursor, the learning rate of the step, so
that a checkpoint needs only weights, optimiser, a few figures and the cursor, and a resumed run
equals one that never stopped, bit for bit on CPU. The same holds, within rounding, for the number of
processes (`virtual_ranks`).
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.loader import BatchLoader, Loaded
from core.encoding.sampler import Cursor
from core.errors import DataError, MachineError, TfxError, TrainingInterrupted
from core.files import replace_file
from core.model.cell_objectives import VIEWS
from core.model.folder import CellModel, put_back_model
from core.model.losses import LossCounts
from core.presets.loading import ResolvedPreset
from core.presets.schema import Preset
from core.progress import Listener, ProgressEvent, ignore_progress
from core.runlog.schema import CHECKPOINTS_FOLDER, CONFIG_FILE, MODEL_FOLDER, NONFINITE_FOLDER
from core.training.batch_source import make_batch_source
from core.training.checkpoints import (
    checkpoint_name,
    discard_checkpoints_after,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
)
from core.training.classification import balanced_epochs, store_of_task, with_additions
from core.training.feasibility import check_feasible
from core.training.flops import EncoderFlops, device_peak
from core.training.full_state import load_optimiser, load_weights, whole, whole_weights
from core.training.machine import Machine, set_up_speed
from core.training.numeric_guards import NonFiniteSteps, SpikeDetector
from core.training.optimiser import (
    ENCODER,
    WeightAverage,
    learning_rate_factor,
    make_optimiser,
    total_steps,
)
from core.training.processes import Processes
from core.training.resume_rules import check_changes
from core.training.run_lock import owned_run
from core.training.run_log import RunLog, open_run_log
from core.training.setup import build_model, chosen_rows, class_weights
from core.training.start_weights import ConvertWeights, take_shape_of_start
from core.training.step_window import StepSize, StepWindow
from core.training.train_step import StepOutcome, TrainStep
from core.training.validation import Validation, describe_accuracies
from core.training.virtual_ranks import StepBatch, VirtualRankSources, virtual_ranks_of_process

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)

#: Cells that an event names at most.
_CELLS_IN_EVENT = 4096


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes
    ----------
    run, model
        The run folder, and the model folder in it.
    steps
        Optimiser steps done.
    best_step
        Step of the weights in the model folder: those of the lowest validation loss.
    validation
        Validation figures of those weights, by metric name.
    is_main
        Whether this process is the one to report it.
    """

    run: Path
    model: Path
    steps: int
    best_step: int
    validation: dict[str, float]
    is_main: bool = True


@dataclass
class _Progress:
    """What changes while a run goes on, and is saved with it."""

    step: int = 0
    #: Step of the last evaluation that was finished.
    evaluated: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)
    #: Evaluations since the best one.
    without_gain: int = 0
    #: Whether training ended early, for lack of gain.
    has_ended: bool = False


class _StopAsked(Exception):
    """Somebody asked the run to stop."""


def train(
    resolved: ResolvedPreset,
    store: Store,
    run_folder: Path,
    *,
    convert_weights: ConvertWeights | None = None,
    should_stop: Callable[[], object] = lambda: False,
    on_progress: Listener = ignore_progress,
) -> TrainResult:
    """Train a model, or go on training the one in ``run_folder``.

    Parameters
    ----------
    resolved
        The preset; on resume the run's own, or one that differs in keys that may change.
    store
        The prepared cells.
    run_folder
        Made if absent; continued from its newest whole checkpoint if there is one.
    convert_weights
        Needed where ``model.start_from`` names a model of another system.
    should_stop
        Asked while the model is fitted, before every step and within evaluations; an answer that counts as true (the name of a
        signal, say) saves a checkpoint and raises `TrainingInterrupted`.

    Raises
    ------
    TrainingInterrupted
        Stopped on request, with a checkpoint.
    KeyboardInterrupt
        Stopped on request before anything was written.
    ConfigurationError, DataError, MachineError
        The preset does not fit itself, the run, the cells, or the machine; nothing was written.
        MachineError also where memory or disk ran out.
    TfxError
        Loss or gradients were not finite for ``train.max_nonfinite`` steps in a row.
    """
    resolved = take_shape_of_start(resolved)
    preset = resolved.preset
    store = store_of_task(preset, store)
    machine, _ = check_feasible(preset)
    set_up_speed(machine)
    processes = Processes(machine, unused_parameters=preset.train.log_linear_steps > 0)
    run_folder = processes.of_main(run_folder)
    with ExitStack() as stack:
        if processes.is_main and run_folder.exists():
            stack.enter_context(owned_run(run_folder))
        resolved, changes = _settle_preset(resolved, run_folder, processes)
        preset = resolved.preset
        model = _build_unless_stopped(
            preset,
            store,
            run_folder,
            convert_weights,
            should_stop,
            on_progress if processes.is_main else ignore_progress,
        )
        virtual_ranks, n_virtual_ranks = virtual_ranks_of_process(
            preset.train.virtual_ranks, index=processes.index, count=processes.count
        )
        rows = chosen_rows(preset, store, "train")
        sources = {
            virtual_rank: make_batch_source(
                preset.train, preset.training_masking, store, rows, model,
                virtual_rank=virtual_rank, virtual_ranks=n_virtual_ranks, bins_on_device=machine.device == "cuda",
                rows_of_epoch=balanced_epochs(preset, store, rows),
                views=VIEWS if model.config.cls_contrast else 1,
            )
            for virtual_rank in virtual_ranks
        }  # fmt: skip
        if processes.is_main and not run_folder.exists():
            stack.enter_context(owned_run(run_folder))
        flops, peak = _flops(model, machine, processes)
        log = stack.enter_context(
            open_run_log(
                run_folder,
                is_main=processes.is_main,
                is_first_of_machine=processes.is_first_of_machine,
                run=_describe(resolved, store, model, machine, processes, flops, peak),
                config=resolved.to_toml(),
                settings=preset.model_dump(mode="json"),
                trackers=preset.train.trackers,
                device=processes.device,
            )
        )
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            weights = class_weights(
                np.asarray(store.phenotype_codes[rows]), model.config, preset.loss.class_weights
            )
            run = _Run(
                resolved, store, model, machine, processes, flops, peak, log, run_folder,
                VirtualRankSources(
                    sources,
                    count=lambda arrays: LossCounts.of(arrays, model.config, preset.loss, weights),
                    pin=machine.device == "cuda",
                ),
                weights, should_stop, on_progress,
            )  # fmt: skip
            run.resume(changes)
            result = run.go()
            log.status("finished", step=result.steps, eta=0.0)
            log.event("end", step=result.steps)
        except (TrainingInterrupted, KeyboardInterrupt):
            log.status("stopped")
            raise
        except BaseException as error:
            log.status("failed", error=str(error))
            raise
        processes.wait()
    return result


def _build_unless_stopped(
    preset: Preset,
    store: Store,
    folder: Path,
    convert_weights: ConvertWeights | None,
    should_stop: Callable[[], object],
    on_progress: Listener,
) -> CellModel:
    """Build the model, which may take minutes to fit, and leave at once if asked to.

    Raises
    ------
    TrainingInterrupted
        The run has a checkpoint, which is as it was.
    KeyboardInterrupt
        The run has not begun: nothing was written.
    """

    def listen(event: ProgressEvent) -> None:
        if should_stop():
            raise _StopAsked
        on_progress(event)

    try:
        return build_model(
            preset, store, name=folder.name, convert_weights=convert_weights, on_progress=listen
        )
    except _StopAsked:
        if not any((folder / CHECKPOINTS_FOLDER).glob("step-*")):
            raise KeyboardInterrupt from None
        message = "stopped before its next step, its checkpoint is as it was"
        raise TrainingInterrupted(message) from None


def _settle_preset(
    resolved: ResolvedPreset, folder: Path, processes: Processes
) -> tuple[ResolvedPreset, dict[str, tuple[Any, Any]]]:
    """Settle the number of virtual ranks; return the preset, and what differs from the run's so far.

    Raises
    ------
    ConfigurationError
        A key that is frozen once there is a checkpoint.
    """
    path = folder / CONFIG_FILE
    before = None
    if path.is_file() and any((folder / CHECKPOINTS_FOLDER).glob("step-*")):
        before = ResolvedPreset.from_toml(path.read_text(encoding="utf-8"), where=str(path)).preset
    if resolved.preset.train.virtual_ranks is None:
        virtual_ranks = processes.count if before is None else before.train.virtual_ranks
        resolved = resolved.changed(
            options={"train.virtual_ranks": virtual_ranks},
            option_names={"train.virtual_ranks": "number of processes"},
        )
    if before is None:
        return resolved, {}
    return resolved, check_changes(before, resolved.preset, where=str(folder))


def _describe(
    resolved: ResolvedPreset,
    store: Store,
    model: CellModel,
    machine: Machine,
    processes: Processes,
    flops: EncoderFlops,
    peak: float | None,
) -> dict[str, Any]:
    return {
        "name": resolved.name,
        "store": str(store.path.resolve()),
        "store_key": store.manifest.key,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "genes": len(model.panel),
        "phenotypes": {name: list(v) for name, v in model.config.phenotypes.items()},
        "device": machine.device,
        "device_name": machine.device_name,
        "precision": machine.precision,
        "processes": processes.count,
        "encoder": asdict(flops),
        "peak_flops": peak,
        "simulated": store.truth is not None,
    }


class _Run:
    """One process' share of a run."""

    def __init__(
        self,
        resolved: ResolvedPreset,
        store: Store,
        model: CellModel,
        machine: Machine,
        processes: Processes,
        flops: EncoderFlops,
        peak: float | None,
        log: RunLog,
        folder: Path,
        sources: VirtualRankSources,
        weights: torch.Tensor | None,
        should_stop: Callable[[], object],
        on_progress: Listener,
    ) -> None:
        preset = resolved.preset
        settings = self.settings = preset.train
        self.model, self.store, self.log, self.folder = model, store, log, folder
        self.processes, self.sources = processes, sources
        self.should_stop, self.on_progress = should_stop, on_progress
        sampler = sources.sampler
        self.cursor = sampler.start
        sources.n_parts = settings.micro_batches
        self.total = total_steps(
            sampler.steps, max_steps=settings.max_steps, epochs=settings.epochs
        )
        has_both = model.network.log_linear is not None and model.network.encoder_part is not None
        self.log_linear_steps = min(settings.log_linear_steps, self.total - 1) if has_both else 0
        optimiser = make_optimiser(model.network, settings)
        self.peak_rates = [float(group["lr"]) for group in optimiser.param_groups]
        self.weight_decays = [float(group["weight_decay"]) for group in optimiser.param_groups]
        self.flops, self.peak = flops, peak
        if settings.compile:
            _compile(model, machine)
        self.network, self.optimiser = processes.prepare(model.network, optimiser)
        self.own = processes.unwrap(self.network)
        self.average = WeightAverage(self.own, settings.ema) if settings.ema else None
        if weights is not None:
            weights = weights.to(processes.device)
        self.validation = Validation(
            store, chosen_rows(preset, store, "validation"), settings, preset.loss, weights
        )
        self.step = TrainStep(
            processes, self.network, self.optimiser,
            config=model.config, loss=preset.loss, class_weights=weights,
            gradient_clip=settings.gradient_clip, seed=settings.seed, sources=sources,
            on_smaller=lambda parts: log.event(
                "warning", step=self.progress.step + 1, micro_batches=parts, reason="memory ran out"
            ),
        )  # fmt: skip
        self.progress = _Progress()
        self.window = StepWindow()
        self.non_finite, self.spikes = NonFiniteSteps(settings.max_nonfinite), SpikeDetector()
        self.under_way: deque[StepOutcome] = deque()
        self.saved = -1
        #: Why the newest checkpoint, and the model of the lowest loss, could not be written.
        self.checkpoint_problem = self.model_problem = ""

    # ------------------------------------------------------------------------- the loop

    def go(self) -> TrainResult:
        """Run to the end, or until asked to stop."""
        progress = self.progress
        self.log.status("running", step=progress.step, total=self.total)
        try:
            with BatchLoader(self.sources, self.cursor, lambda batch: batch) as loader:
                while not self._is_over:
                    self._evaluate_and_save()
                    if not self._is_over:  # an evaluation may end it
                        self._do_step(loader)
                self._evaluate_and_save()
        except _StopAsked:
            self._stop()
        problem = self.model_problem or self.checkpoint_problem
        if problem:
            message = (
                f"the run is at its end, but {problem}; free some disk and do its last steps "
                f"again by 'tfx train {self.folder}'"
            )
            raise MachineError(message)
        if progress.best_step == 0:
            message = (
                f"no evaluation of {self.folder} had a finite loss: training diverged, and there is "
                f"no model; train anew with a lower train.learning_rate"
            )
            raise TfxError(message)
        return TrainResult(
            run=self.folder,
            model=self.folder / MODEL_FOLDER,
            steps=progress.step,
            best_step=progress.best_step,
            validation=progress.best_figures,
            is_main=self.processes.is_main,
        )

    @property
    def _is_over(self) -> bool:
        return self.progress.step >= self.total or self.progress.has_ended

    def _do_step(self, loader: BatchLoader[StepBatch]) -> None:
        progress, settings = self.progress, self.settings
        rate = self._set_learning_rate(progress.step)
        self.model.network.log_linear_only = progress.step < self.log_linear_steps
        loaded = loader.next()
        counts, size = self._over_all_processes(loaded)
        outcome = self.step(progress.step, loaded.rows, loaded.batch, counts)
        if self.average is not None:
            self.average.update(progress.step)
        self.under_way.append(outcome)
        progress.step += 1
        self.cursor = loaded.following
        self.window.add_size(size, waited_seconds=loaded.waited_seconds)
        is_last = progress.step == self.total
        self._settle(all_but=0 if is_last or progress.step % settings.log_steps == 0 else 1)
        if progress.step % settings.log_steps == 0 or is_last:
            self._log_window(rate)
        self._tell("")

    def _over_all_processes(self, loaded: Loaded[StepBatch]) -> tuple[LossCounts, StepSize]:
        """Add this step's counts up over the processes; all stop here if one was asked to."""
        batch, stop = loaded.batch, self.should_stop()
        genes, phenotypes, cells, tokens, squared, stopping = self.processes.total(
            [
                batch.counts.genes, batch.counts.phenotypes,
                batch.n_cells, batch.n_tokens, batch.squared_lengths, float(bool(stop)),
            ]
        )  # fmt: skip
        if stopping:
            self._ask_to_stop(stop)
        return LossCounts(genes, phenotypes, cells), StepSize(cells, tokens, squared)

    def _look(self) -> None:
        """Raise where any process was asked to stop; all processes call it at the same places."""
        stop = self.should_stop()
        if self.processes.any(flag=bool(stop)):
            self._ask_to_stop(stop)

    def _ask_to_stop(self, stop: object) -> None:
        if isinstance(stop, str):
            self.log.event("signal", signal=stop, step=self.progress.step)
        raise _StopAsked

    def _set_learning_rate(self, step: int) -> float:
        """Set every group's learning rate for a step; return that of the first.

        The encoder's schedule begins when it joins, after ``train.log_linear_steps``.
        """
        for group, peak in zip(self.optimiser.param_groups, self.peak_rates, strict=True):
            late = self.log_linear_steps if group["part"] == ENCODER else 0
            group["lr"] = peak * learning_rate_factor(
                max(step - late, 0),
                total=self.total - late,
                warmup_ratio=self.settings.warmup_ratio,
                schedule=self.settings.schedule,
            )
        return float(self.optimiser.param_groups[0]["lr"])

    def _settle(self, *, all_but: int = 0) -> None:
        """Look at the outcomes of steps, all but the newest so many, and log what is odd."""
        while len(self.under_way) > all_but:
            outcome = self.under_way.popleft()
            figures = outcome.wait()
            self.window.add(figures)
            step = outcome.step + 1
            if not figures.finite:
                self._note_non_finite(step, outcome.rows)
            else:
                self._note_spike(step, figures.loss, outcome.rows)
            self.non_finite.note(step, finite=figures.finite)

    def _note_non_finite(self, step: int, rows: NDArray[np.int64]) -> None:
        """Log a step that was skipped, and write down which cells it had."""
        rows = np.concatenate(self.processes.gather(rows))
        if not self.processes.is_main:
            return
        name = f"{NONFINITE_FOLDER}/{checkpoint_name(step)}.csv"
        logger.warning("step %d skipped: its loss or gradient is not finite (%s)", step, name)
        self.log.event("nonfinite", step=step, rows=rows[:_CELLS_IN_EVENT].tolist(), cells=name)
        sources = [source.name for source in self.store.manifest.sources]
        origins = self.store.origins[rows].tolist()
        lines = ["store_row,file,file_row"]
        lines += [
            f'{row},"{sources[source]}",{place}'
            for row, (source, place) in zip(rows.tolist(), origins, strict=True)
        ]
        try:
            (self.folder / NONFINITE_FOLDER).mkdir(exist_ok=True)
            replace_file(self.folder / name, "\n".join(lines) + "\n")
        except OSError as error:
            self._warn(f"{name} cannot be written ({error.strerror})")

    def _note_spike(self, step: int, loss: float, rows: NDArray[np.int64]) -> None:
        median = self.spikes.median_if_spike(loss)
        if median is not None:
            self.log.event(
                "spike", step=step, loss=loss, median=median, rows=rows[:_CELLS_IN_EVENT].tolist()
            )

    def _log_window(self, rate: float) -> None:
        progress, window = self.progress, self.window.close()
        n_steps = self.sources.sampler.steps(self.cursor.epoch)
        figures = window.metrics | {
            "lr": rate,
            "epoch": self.cursor.epoch + self.cursor.batch / n_steps,
        }
        mfu = self.flops.utilisation(
            tokens_per_second=figures["tokens_per_second"],
            attended_length=window.attended_length,
            peak=self.peak,
        )
        if mfu is not None and not self.model.network.log_linear_only:
            figures["mfu"] = mfu
        self.log.metrics(progress.step, "train", figures)
        eta = window.seconds_per_step * (self.total - progress.step)
        self.log.status("running", step=progress.step, eta=round(eta, 1))
        self.log.machine(
            **{
                name: figures.get(name)
                for name in ("cells_per_second", "tokens_per_second", "wait", "mfu")
            }
        )

    def _tell(self, message: str) -> None:
        if self.processes.is_main:
            done = self.progress.step
            self.on_progress(ProgressEvent("training", done, self.total, message=message))

    # ----------------------------------------------------------- evaluations, checkpoints

    def _evaluate_and_save(self) -> None:
        """Do what is due after the steps so far."""
        progress, settings = self.progress, self.settings
        if progress.step == 0:
            return
        is_due = progress.step % settings.eval_steps == 0 or self._is_over
        if is_due and progress.evaluated != progress.step:
            self._evaluate()
        if progress.step % settings.save_steps == 0 or self._is_over:
            self._save()

    def _evaluate(self) -> None:
        """Score validation cells; keep the model folder of the lowest loss."""
        progress = self.progress
        self._settle()
        with nullcontext() if self.average is None else self.average.in_place():
            figures = self.processes.of_main(self.validation.figures(self.model, look=self._look))
            progress.evaluated = progress.step
            if figures:
                self.log.metrics(progress.step, "validation", figures)
                self.log.event("eval", step=progress.step, loss=figures["loss"])
                self._tell(
                    f"step {progress.step}: validation loss {figures['loss']:.4f}  "
                    f"accuracy: {describe_accuracies(figures)}"
                )
            if not figures or figures["loss"] < progress.best_loss:
                progress.without_gain = 0
                self._keep_model(figures)
            else:
                progress.without_gain += 1
        if self.settings.patience is not None and progress.without_gain >= self.settings.patience:
            progress.has_ended = True
            self.log.event("early_stop", step=progress.step, best_step=progress.best_step)
            self._tell(
                f"ended at step {progress.step}: no lower validation loss in "
                f"{progress.without_gain} evaluations; the best was at step {progress.best_step}"
            )

    def _keep_model(self, figures: dict[str, float]) -> None:
        """Save the model folder; where the disk is full, the older one stays."""
        progress = self.progress
        origin = {
            "run": str(self.folder.resolve()),
            "step": progress.step,
            "total_steps": self.total,
            "validation": figures,
        }
        weights = whole_weights(self.own)
        problem = ""
        if self.processes.is_main:
            self.model.provenance |= origin
            weights = with_additions(weights, self.own)
            try:
                self.model.save(self.folder / MODEL_FOLDER, weights=weights)
            except MachineError as error:
                problem = str(error)
                self._warn(problem)
        self.model_problem = self.processes.of_main(problem)
        if not self.model_problem:
            progress.best_loss = figures.get("loss", math.inf)
            progress.best_step = progress.step
            progress.best_figures = figures

    def _save(self) -> str:
        """Save a checkpoint; return what was wrong, if anything was."""
        progress = self.progress
        if self.saved == progress.step:
            return ""
        self._settle()
        scaler = self.processes.accelerator.scaler
        state = {
            "optimiser": whole(self.optimiser.state_dict()),
            "progress": asdict(progress),
            "cursor": self.cursor.to_json(),
            "window": self.window.state(),
            "micro_batches": self.sources.n_parts,
            "average": None if self.average is None else whole(self.average.state()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        weights = whole_weights(self.own)
        problem = ""
        if self.processes.is_main:
            try:
                self._write_checkpoint(weights, state)
            except MachineError as error:
                problem = str(error)
                self._warn(f"{problem}; the run goes on, with the checkpoints it has")
        self.checkpoint_problem = self.processes.of_main(problem)
        if not self.checkpoint_problem:
            self.saved = progress.step
        return self.checkpoint_problem

    def _write_checkpoint(self, weights: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        progress = self.progress
        folder = self.folder / CHECKPOINTS_FOLDER
        path = save_checkpoint(folder, step=progress.step, weights=weights, state=state)
        prune_checkpoints(folder, keep=self.settings.keep_checkpoints, best=progress.best_step)
        self.log.event("checkpoint", step=progress.step, path=path.name)
        self.log.status("running", checkpoint=path.name, step=progress.step)

    def _warn(self, message: str) -> None:
        logger.warning("%s", message)
        self.log.event("warning", step=self.progress.step, reason=message)

    def _stop(self) -> None:
        """Save and leave, as somebody asked.

        Raises
        ------
        TrainingInterrupted
            With a checkpoint.
        MachineError
            The checkpoint could not be written.
        """
        step = self.progress.step
        problem = self._save()
        if problem:
            message = (
                f"stopped at step {step} of {self.total}, but {problem}; free some disk: "
                f"'tfx train {self.folder}' goes on from the newest checkpoint there is"
            )
            raise MachineError(message)
        message = f"stopped at step {step} of {self.total}, checkpoint saved"
        raise TrainingInterrupted(message)

    def resume(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Take up the newest whole checkpoint, or begin.

        Parameters
        ----------
        changes
            Keys of the preset that differ from those that the run has had so far.
        """
        folder = self.folder / CHECKPOINTS_FOLDER
        name = None
        if self.processes.is_main:
            put_back_model(self.folder / MODEL_FOLDER)
            remove_leftovers(folder)
            remove_leftovers(self.folder)
            path = latest_checkpoint(
                folder,
                on_damage=lambda bad: self.log.event(
                    "warning", checkpoint=bad.name, reason="damaged; the one before is used"
                ),
            )
            name = None if path is None else path.name
        name = self.processes.of_main(name)
        if name is None:
            self.log.event("start", total=self.total)
            return
        weights, state = load_checkpoint(folder / name)
        self._restore(folder / name, weights, state)
        if self.processes.is_main:
            discard_checkpoints_after(folder, self.progress.step)
        self.log.event(
            "resume",
            from_step=self.progress.step + 1,
            **({"changed": {key: list(pair) for key, pair in changes.items()}} if changes else {}),
        )
        self._tell(f"resumed at step {self.progress.step}")

    def _restore(self, path: Path, weights: dict[str, Any], state: dict[str, Any]) -> None:
        if "progress" not in state:
            message = f"{path} was written by an older tfx, whose order of cells was another; train the preset anew"
            raise DataError(message)
        try:
            load_weights(self.own, weights)
        except RuntimeError as error:
            message = f"{path}: the checkpoint does not fit the preset's model; resume with the run's own config.toml"
            raise DataError(message) from error
        load_optimiser(self.optimiser, state["optimiser"])
        # The preset's decay holds, which may have been changed; the optimiser remembers the old.
        for group, decay in zip(self.optimiser.param_groups, self.weight_decays, strict=True):
            group["weight_decay"] = decay
        scaler = self.processes.accelerator.scaler
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        progress = self.progress = _Progress(**state["progress"])
        patience = self.settings.patience  # may have been changed
        progress.has_ended = patience is not None and progress.without_gain >= patience
        self.saved = self.progress.step
        self.window.load(state["window"])
        self.sources.n_parts = max(self.sources.n_parts, int(state["micro_batches"]))
        if self.average is not None and state["average"]:
            self.average.load(state["average"])
        self.cursor = self.sources.sampler.resume(Cursor.from_json(state["cursor"]))


def _flops(
    model: CellModel, machine: Machine, processes: Processes
) -> tuple[EncoderFlops, float | None]:
    """Return what a token costs the encoder, and the peak of all devices together."""
    part = model.network.encoder_part
    layers = [] if part is None else list(part.encoder.layers)
    flops = EncoderFlops(
        parameters=sum(p.numel() for layer in layers for p in layer.parameters()),
        layers=len(layers),
        width=model.config.hidden_size,
    )
    peak = device_peak(processes.device, machine.precision) if layers else None
    return flops, None if peak is None else peak * processes.count


def _compile(model: CellModel, machine: Machine) -> None:
    """Compile the encoder's layers in place; on a CPU it gains nothing (measured: 2 %)."""
    if machine.device != "cuda":
        logger.info("train.compile is for CUDA: layers are not compiled on %s", machine.device)
        return
    part = model.network.encoder_part
    if part is not None:
        for layer in part.encoder.layers:
            layer.compile(dynamic=model.config.layout == "expressed")
