"""The training loop: batches in, a run folder out; it can be stopped, or killed, at any moment.

`train` starts a run or resumes one. Everything is built once by `run_setup`; `state` is what training
changes; one step is `step`. Batch, masks and dropout are functions of the seed and a cursor, the
learning rate of the step, so that a resumed run equals one that never stopped, bit for bit on a CPU with the
same number of threads (`threads`). The same holds, within rounding, for the number of processes
(`virtual_ranks`).
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.cells.store import Store
from core.encoding.loader import BatchLoader
from core.errors import MachineError, TfxError, TrainingInterrupted
from core.model.folder import put_back_model
from core.presets.loading import ResolvedPreset
from core.progress import Listener, ProgressEvent, ignore_progress
from core.runlog.ownership import owned_run
from core.runlog.schema import CHECKPOINTS_FOLDER, MODEL_FOLDER
from core.runlog.work import work_on
from core.training.checkpoints import (
    discard_checkpoints_after,
    has_checkpoint,
    has_whole_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
    settle_preset,
)
from core.training.machine import set_up_speed
from core.training.processes import Processes, merge_low_rank, whole_weights
from core.training.run_log import RunLog, open_run_log
from core.training.run_setup import RunSetup, check_feasible
from core.training.start_weights import ConvertWeights, take_shape_of_start
from core.training.state import TrainingState, is_untrained
from core.training.step import StepRecorder, TrainStep
from core.training.threads import Threads, threads_restored
from core.training.validation import majority_accuracies, validation_metrics
from core.training.virtual_ranks import StepBatch, StepSize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The end of a run."""

    #: The run folder, and the model folder in it.
    run: Path
    model: Path
    #: Optimiser steps done.
    steps: int
    #: Step of the weights in the model folder: those of the best validation score.
    best_step: int
    #: Validation metrics of those weights, by name.
    validation: dict[str, float]
    #: What the user should know of the model; empty if nothing.
    warning: str = ""
    #: Whether this process is the one to report the result.
    is_main: bool = True


class _StopRequestedError(Exception):
    """``should_stop`` returned something true."""


def train(
    resolved: ResolvedPreset,
    store: Store,
    run_folder: Path,
    *,
    is_owned: bool = False,
    convert_weights: ConvertWeights | None = None,
    should_stop: Callable[[], object] = lambda: False,
    on_progress: Listener = ignore_progress,
) -> TrainResult:
    """Train a model, or resume the run in ``run_folder``.

    On resume ``resolved`` is the run's own preset, or one that differs in keys that may change.
    ``run_folder`` is made if absent, and owned while this trains, unless the caller owns it already
    (``is_owned``). ``convert_weights`` is needed where ``model.start_from`` names a
    model of another system. ``should_stop`` is called while the model is fitted, before every step
    and within evaluations; a true result (the name of a signal, say) saves a checkpoint and raises
    `TrainingInterrupted`, or KeyboardInterrupt before anything was written. ConfigurationError,
    DataError or MachineError if the preset does not fit itself, the run, the cells or the machine
    (nothing was written), MachineError also where memory or disk ran out; TfxError if loss or gradients
    were not finite for ``train.max_nonfinite`` steps in a row.
    """
    resolved = take_shape_of_start(resolved)
    machine, _ = check_feasible(resolved.preset)
    set_up_speed(machine)
    processes = Processes(machine, unused_parameters=resolved.preset.train.log_linear_steps > 0)
    run_folder = processes.broadcast(run_folder)
    report = on_progress if processes.is_main else ignore_progress
    show_work: Listener = ignore_progress

    def report_unless_stopped(event: ProgressEvent) -> None:
        if should_stop():
            raise _StopRequestedError
        show_work(event)
        report(event)

    with ExitStack() as stack, ExitStack() as fitting:
        if processes.is_main and not is_owned:
            stack.enter_context(owned_run(run_folder))
        is_resumed = processes.broadcast(processes.is_main and has_whole_checkpoint(run_folder))
        if processes.is_main:
            what = "resuming" if is_resumed else "fitting"
            show_work = fitting.enter_context(work_on(run_folder, what))
        resolved, changes = settle_preset(resolved, run_folder, n_processes=processes.count)
        stack.enter_context(threads_restored())
        threads = Threads(
            resolved.preset.train.threads,
            can_choose=machine.device == "cpu" and processes.count == 1,
        )
        try:
            setup = RunSetup(
                resolved,
                store,
                machine,
                processes,
                threads,
                name=run_folder.name,
                convert_weights=convert_weights,
                is_resumed=is_resumed,
                on_progress=report_unless_stopped,
            )
        except _StopRequestedError:  # fitting a model may take minutes: leave at once
            if not has_checkpoint(run_folder):
                raise KeyboardInterrupt from None
            raise TrainingInterrupted(
                f"stopped before its next step, its checkpoint is as it was; 'tfx train {run_folder}' "
                f"continues from there"
            ) from None
        log = stack.enter_context(open_run_log(run_folder, setup))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            loop = _Loop(setup, log, should_stop, report)
            loop.resume(changes)
            fitting.close()
            result = loop.run()
            log.status("finished", step=result.steps, eta=0.0)
            log.event("end", step=result.steps)
        except (TrainingInterrupted, KeyboardInterrupt):
            log.status("stopped")
            raise
        except BaseException as error:
            log.status("failed", error=str(error))
            raise
        processes.barrier()
    return result


class _Loop:
    """Steps, evaluations and checkpoints of one process."""

    def __init__(
        self, setup: RunSetup, log: RunLog, should_stop: Callable[[], object], on_progress: Listener
    ) -> None:
        self.setup, self.settings, self.processes = setup, setup.preset.train, setup.processes
        self.log = log
        self.should_stop, self.on_progress = should_stop, on_progress
        self.recorder = StepRecorder(setup, log)
        self.state = TrainingState(setup, self.recorder)
        self.do_step = TrainStep(setup, self.state.network, self.state.optimiser, log)
        self.saved_step = -1
        #: Why the newest checkpoint, and the model of the best score, could not be written.
        self.checkpoint_problem = self.model_problem = ""
        #: Saves the model of the best score.
        self._keep: Callable[[], None] = lambda: None

    @property
    def folder(self) -> Path:
        """The run folder, where it is now."""
        return self.log.folder

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.progress.step

    def run(self) -> TrainResult:
        """Train to the end, or until a stop is requested."""
        state = self.state
        self.log.status("running", step=self.step, total=state.total)
        try:
            self._evaluate_start()
            with BatchLoader(self.setup.source, state.cursor) as loader:
                while not state.is_over:
                    self._evaluate_and_save()
                    if not state.is_over:  # an evaluation may end the run
                        self._step(loader)
                self._evaluate_and_save()
        except _StopRequestedError:
            self._stop()
        return self._result()

    def _step(self, loader: BatchLoader[StepBatch]) -> None:
        state, number, threads = self.state, self.step, self.setup.threads
        rate = state.begin_step()
        loaded = loader.next()
        size = StepSize(*self._check_stop(loaded.batch.size))
        if not threads.is_settled:
            self._choose_threads(loaded.batch, size)
        began = time.perf_counter()
        outcome = self.do_step(number, loaded.rows, loaded.batch, size.counts)
        state.end_step(loaded.following)
        if threads.is_due(time.perf_counter() - began, size.n_tokens):
            self._choose_threads(loaded.batch, size)
        self.recorder.add(outcome, size, waited_seconds=loaded.waited_seconds)
        is_logged = self.step % self.settings.log_steps == 0 or self.step == state.total
        # The device computes one step while the host prepares the next.
        self.recorder.settle(all_but=0 if is_logged else 1)
        if is_logged:
            self.recorder.log_averages(
                self.step,
                state.total,
                rate=rate,
                cursor=state.cursor,
                log_linear_steps=state.log_linear_steps,
            )
        self._report("")

    def _choose_threads(self, batch: StepBatch, size: StepSize) -> None:
        """Time the step of a batch on one thread and on all, and continue on the faster number."""
        threads = self.setup.threads
        is_first, before = not threads.is_settled, threads.n_threads
        one, of_all = threads.choose(lambda: self.do_step.rehearse(self.step, batch, size.counts))
        now = threads.n_threads
        if is_first or now != before:
            self.log.event("threads", step=self.step, threads=now, one=one, all=of_all)
            logger.info(
                "computing on %d of %d threads: a step takes %.3g s on one and %.3g s on all",
                *(now, threads.n_all, one, of_all),
            )

    def _check_stop(self, numbers: Iterable[float] = ()) -> list[float]:
        """Stop if any process has to; return numbers summed over the processes, which all call it."""
        stop = self.should_stop()
        *sums, stopping = self.processes.all_reduce([*numbers, float(bool(stop))])
        if stopping:
            if isinstance(stop, str):
                self.log.event("signal", signal=stop, step=self.step)
            raise _StopRequestedError
        return sums

    def _report(self, message: str) -> None:
        self.on_progress(
            ProgressEvent(
                "training",
                self.step,
                self.state.total,
                message=message,
                note=self._note(),
                seconds_left=self.recorder.eta,
            )
        )

    def _note(self) -> str:
        """Say how training goes: loss, best accuracy, speed."""
        last, best = self.recorder.last, self.state.progress.best_metrics
        parts = [f"loss {last['loss']:.3f}"] if "loss" in last else []
        scores = [
            best[f"acc/{name}"]
            for name in self.setup.model.config.predicted
            if f"acc/{name}" in best
        ]
        parts += [f"best accuracy {sum(scores) / len(scores):.3f}"] if scores else []
        parts += [f"{last['cells_per_second']:,.0f} cells/s"] if last else []
        return ", ".join(parts)

    def _result(self) -> TrainResult:
        progress = self.state.progress
        problem = self.model_problem or self.checkpoint_problem
        if problem:
            raise MachineError(
                f"the run is at its end, but {problem}; free some disk and do its last steps "
                f"again by 'tfx train {self.folder}'"
            )
        if progress.best_step == 0:
            raise TfxError(
                f"no evaluation of {self.folder} had a finite loss: training diverged, and there is "
                f"no model; train anew with a lower train.learning_rate"
            )
        warning = ""
        if progress.encoder_is_untrained:
            warning = _untrained(progress.best_step, self.state.log_linear_steps)
            self.log.warn(progress.best_step, warning)
        return TrainResult(
            run=self.folder,
            model=self.folder / MODEL_FOLDER,
            steps=progress.step,
            best_step=progress.best_step,
            validation=progress.best_metrics,
            warning=warning,
            is_main=self.processes.is_main,
        )

    def _evaluate_and_save(self) -> None:
        """Do what is due after the steps so far."""
        state, settings = self.state, self.settings
        if self.step == 0:
            return
        is_due = self.step % settings.eval_steps == 0 or state.is_over
        if is_due or self.step % settings.save_steps == 0:
            self.log.check_folder()
        if is_due and state.progress.evaluated != self.step:
            self._evaluate()
        if self.step % settings.save_steps == 0 or state.is_over:
            self._save()

    def _evaluate_start(self) -> None:
        """Score the model before its first step, where learning curves start, and their constant baselines."""
        progress = self.state.progress
        if self.step > 0 or progress.evaluated == 0:
            return
        own = validation_metrics(self.setup, check_stop=self._check_stop)
        if metrics := self.processes.broadcast(own):
            baselines = {f"baseline/{n}": one for n, one in majority_accuracies(self.setup).items()}
            self.log.metrics(0, "validation", metrics | baselines)
        progress.evaluated = 0

    def _evaluate(self) -> None:
        """Score validation cells; keep the model folder of the best score."""
        progress = self.state.progress
        self.recorder.settle()
        with self.state.averaged():
            own = validation_metrics(self.setup, check_stop=self._check_stop)
            metrics = self.processes.broadcast(own)
            if progress.chosen_by == "loss":
                metrics.pop("score", None)  # so that readers of the run see what it goes by
            progress.evaluated = self.step
            if metrics:
                self.log.metrics(self.step, "validation", metrics)
                self.log.event("eval", step=self.step, loss=metrics["loss"])
                accuracies = "  ".join(
                    f"{name.removeprefix('acc/')} {value:.3f}"
                    for name, value in metrics.items()
                    if name.startswith("acc/") and name != "acc/genes_baseline"
                )
                loss = f"validation loss {metrics['loss']:.4f}"
                self._report(f"step {self.step}: {loss}  accuracy: {accuracies}")
            if not metrics or progress.is_best(metrics):
                progress.without_gain = 0
                self._keep_model(metrics)
            else:
                progress.without_gain += 1
        if self.settings.patience is not None and progress.without_gain >= self.settings.patience:
            progress.has_ended = True
            self.log.event("early_stop", step=self.step, best_step=progress.best_step)
            self._report(
                f"ended at step {self.step}: no better validation {progress.chosen_by} in "
                f"{progress.without_gain} evaluations; the best was at step {progress.best_step}"
            )

    def _keep_model(self, metrics: dict[str, float]) -> None:
        """Save the model folder; if the disk is full, the older one stays until `_save` tries again."""
        model, network, progress = self.setup.model, self.state.own_network, self.state.progress
        weights, calibration = whole_weights(network), model.calibration
        progress.best_step, progress.best_metrics = self.step, metrics
        progress.encoder_is_untrained = is_untrained(weights)
        if metrics:
            progress.best_score, negative = progress.rank(metrics)
            progress.best_loss = -negative
        weights = merge_low_rank(weights, network)
        facts = {"step": self.step, "total_steps": self.state.total, "validation": metrics}

        def save() -> None:
            model.calibration = calibration
            model.provenance |= {"run": str(self.folder.resolve()), **facts}
            model.save(self.folder / MODEL_FOLDER, weights=weights)

        self._keep = save
        self.model_problem = self._try_on_main(save)
        if self.model_problem:  # the next steps change them
            weights = {name: tensor.clone() for name, tensor in weights.items()}

    def _try_on_main(self, write: Callable[[], None], *, consequence: str = "") -> str:
        """Write in the main process; return to all processes why it failed, or ""."""
        problem = ""
        if self.processes.is_main:
            try:
                write()
            except MachineError as error:
                problem = str(error)
                self.log.warn(self.step, f"{problem}{consequence}")
        reason: str = self.processes.broadcast(problem)
        return reason

    def _save(self) -> None:
        """Save a checkpoint; if the disk is full, the older ones stay."""
        if self.saved_step == self.step:
            return
        self.recorder.settle()
        consequence = "; the run continues with the checkpoints it has"
        if self.model_problem:  # a checkpoint after it would not save this model again
            self.model_problem = self._try_on_main(self._keep, consequence=consequence)
            if self.model_problem:
                self.checkpoint_problem = self.model_problem
                return
        weights, state = self.state.to_checkpoint()

        def save() -> None:
            folder = self.folder / CHECKPOINTS_FOLDER
            path = save_checkpoint(folder, step=self.step, weights=weights, state=state)
            best_step = self.state.progress.best_step
            prune_checkpoints(folder, keep=self.settings.keep_checkpoints, best=best_step)
            self.log.event("checkpoint", step=self.step, path=path.name)
            self.log.status("running", checkpoint=path.name, step=self.step)

        self.checkpoint_problem = self._try_on_main(save, consequence=consequence)
        if not self.checkpoint_problem:
            self.saved_step = self.step

    def _stop(self) -> None:
        """Save a checkpoint and raise TrainingInterrupted; MachineError if it cannot be saved."""
        self._save()
        where = f"stopped at step {self.step} of {self.state.total}"
        if self.saved_step == self.step:
            raise TrainingInterrupted(
                f"{where}, checkpoint saved; 'tfx train {self.folder}' continues from there"
            )
        raise MachineError(
            f"{where}, but {self.checkpoint_problem}; free some disk: "
            f"'tfx train {self.folder}' resumes from the newest checkpoint"
        )

    def resume(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Restore the newest whole checkpoint, or begin; ``changes`` are those of the preset since."""
        folder = self.folder / CHECKPOINTS_FOLDER
        name = None
        if self.processes.is_main:
            put_back_model(self.folder / MODEL_FOLDER)
            remove_leftovers(folder)
            remove_leftovers(self.folder)
            reason = "damaged; the one before is used"
            path = latest_checkpoint(
                folder, lambda bad: self.log.event("warning", checkpoint=bad.name, reason=reason)
            )
            name = None if path is None else path.name
        name = self.processes.broadcast(name)
        if name is None and self.setup.is_resumed:
            raise MachineError(f"the checkpoints in {folder} have gone meanwhile; try again")
        if name is None:
            self.log.event("start", total=self.state.total)
            return
        self.state.restore(folder / name, *load_checkpoint(folder / name))
        self.saved_step = self.step
        if self.processes.is_main:
            discard_checkpoints_after(folder, self.step)
        changed = {"changed": {k: list(pair) for k, pair in changes.items()}} if changes else {}
        self.log.event("resume", from_step=self.step + 1, **changed)
        self._report(f"resumed at step {self.step}")


def _untrained(best_step: int, log_linear_steps: int) -> str:
    why = "its outputs are still zero"
    if best_step <= log_linear_steps:
        why = f"its training began after step {log_linear_steps:,} (train.log_linear_steps)"
    return (
        f"the encoder of the model is untrained: validation was best at step {best_step:,}, and {why}; lower "
        f"train.log_linear_steps, or set model.layers = 0 to train without an encoder"
    )
