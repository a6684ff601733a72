"""The training loop: batches in, a run folder out; can be stopped and resumed at any step.

`train` starts a run or continues one. What is learnt is in `core.model`, what is hidden in
`core.encoding`; here are steps, evaluations, checkpoints and the run log. The batch and the masks
are functions of the seed and a cursor, the learning rate of the step, so that a checkpoint needs
only weights, optimiser, random state and the cursor, and a resumed run equals one that never
stopped, bit for bit on CPU.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import Tensor

from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.loader import BatchLoader, BatchSource, Loaded
from core.encoding.sampler import Cursor
from core.errors import TfxError, TrainingInterrupted
from core.evaluation.masked_evaluation import evaluate_masked, predict_phenotypes
from core.evaluation.phenotype_metrics import score_phenotype
from core.model.attention import resolve_attention
from core.model.batch_tensors import HostBatch
from core.model.folder import CellModel
from core.model.losses import LossParts, masked_loss
from core.presets.loading import ResolvedPreset
from core.progress import Listener, ProgressEvent, ignore_progress
from core.runlog.writer import RunWriter
from core.training.batch_source import make_batch_source
from core.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from core.training.machine import Machine, choose_machine
from core.training.optimiser import ENCODER, make_optimiser
from core.training.schedule import learning_rate_factor, total_steps
from core.training.setup import build_model, chosen_rows, class_weights
from core.training.step_window import StepWindow

__all__ = ["MODEL_FOLDER", "TrainResult", "train"]

logger = logging.getLogger(__name__)

#: Name of the model folder inside a run folder.
MODEL_FOLDER = "model"
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Steps in a row with a non-finite gradient after which a run gives up.
MAX_NONFINITE = 20


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
    """

    run: Path
    model: Path
    steps: int
    best_step: int
    validation: dict[str, float]


@dataclass
class _Progress:
    """What changes while a run goes on, and is saved with it."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)


def train(
    resolved: ResolvedPreset,
    store: Store,
    run_folder: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Listener = ignore_progress,
) -> TrainResult:
    """Train a model, or go on training the one in ``run_folder``.

    Parameters
    ----------
    resolved
        The preset; on resume the run's own.
    store
        The prepared cells.
    run_folder
        Made if absent; continued from its newest whole checkpoint if there is one.
    should_stop
        Asked after every step; True saves a checkpoint and raises `TrainingInterrupted`.

    Raises
    ------
    TrainingInterrupted
        Stopped on request, with a checkpoint.
    ConfigurationError, DataError, MachineError
        The preset does not fit itself, the cells, or the machine; nothing was written.
    TfxError
        The gradients were not finite for `MAX_NONFINITE` steps in a row.
    """
    preset = resolved.preset
    machine = choose_machine(preset.train)
    resolve_attention(  # only to refuse, before anything is written, what cannot run here
        preset.model.attention,
        device=torch.device(machine.device),
        dtype=_DTYPES[machine.precision],
        dropout=preset.model.attention_dropout,
        ragged=preset.encoding.layout == "expressed",
    )
    model = build_model(preset, store, name=run_folder.name, on_progress=on_progress)
    accelerator = _make_accelerator(machine)
    source = make_batch_source(
        preset.train,
        preset.masking,
        store,
        chosen_rows(preset, store, "train"),
        model,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        bins_on_device=machine.device == "cuda",
    )
    with RunWriter(run_folder, run=_describe(resolved, store, model, machine)) as log:
        log.config(resolved.to_toml())
        log.status("starting")
        handler = log.log_handler()
        logging.getLogger("core").addHandler(handler)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(preset.train.seed)
                run = _Run(
                    resolved, store, model, source, accelerator, log, should_stop, on_progress
                )
                result = run.go()
            log.status("finished", step=result.steps)
            log.event("end", step=result.steps)
        except (TrainingInterrupted, KeyboardInterrupt):
            log.status("stopped")
            raise
        except BaseException as error:
            log.status("failed", error=str(error))
            raise
        finally:
            logging.getLogger("core").removeHandler(handler)
    return result


def _describe(
    resolved: ResolvedPreset, store: Store, model: CellModel, machine: Machine
) -> dict[str, Any]:
    return {
        "name": resolved.name,
        "store": str(store.path.resolve()),
        "store_key": store.manifest.key,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "genes": len(model.panel),
        "phenotypes": {name: list(v) for name, v in model.config.phenotypes.items()},
        "device": machine.device,
        "precision": machine.precision,
        "simulated": store.truth is not None,
    }


def _make_accelerator(machine: Machine) -> Accelerator:
    # accelerate keeps one global state per process; another run in it may want another one.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=machine.device == "cpu", mixed_precision=machine.precision)


class _Run:
    """One process' share of a run."""

    def __init__(
        self,
        resolved: ResolvedPreset,
        store: Store,
        model: CellModel,
        source: BatchSource,
        accelerator: Accelerator,
        log: RunWriter,
        should_stop: Callable[[], bool],
        on_progress: Listener,
    ) -> None:
        self.settings = resolved.preset.train
        self.loss = resolved.preset.loss
        self.store, self.model, self.log = store, model, log
        self.source, self.accelerator = source, accelerator
        self.should_stop, self.on_progress = should_stop, on_progress
        settings, sampler = self.settings, source.sampler
        self.cursor = sampler.start
        self.total = total_steps(
            sampler.steps, max_steps=settings.max_steps, epochs=settings.epochs
        )
        has_both = model.network.skeleton is not None and model.network.encoder_part is not None
        self.skeleton_steps = min(settings.skeleton_steps, self.total - 1) if has_both else 0
        self.validation = self._validation_rows(chosen_rows(resolved.preset, store, "validation"))
        self.optimiser = make_optimiser(model.network, settings)
        self.peak_rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.network, self.optimiser = self.accelerator.prepare(model.network, self.optimiser)
        self.device = self.accelerator.device
        weights = class_weights(
            np.asarray(store.phenotype_codes[sampler.rows]), model.config, self.loss.class_weights
        )
        self.class_weights = None if weights is None else weights.to(self.device)
        self.progress = _Progress()
        self.nonfinite_in_a_row = 0

    def _validation_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take at most ``train.eval_cells`` of the validation cells."""
        if len(rows) > self.settings.eval_cells:
            rng = np.random.default_rng([self.settings.seed, 3])
            rows = np.sort(rng.choice(rows, self.settings.eval_cells, replace=False))
        return rows

    def go(self) -> TrainResult:
        """Run to the end, or until asked to stop."""
        self._resume()
        with BatchLoader(self.source, self.cursor, self._to_host) as loader:
            self._steps(loader)
        progress = self.progress
        return TrainResult(
            run=self.log.folder,
            model=self.log.folder / MODEL_FOLDER,
            steps=progress.step,
            best_step=progress.best_step,
            validation=progress.best_figures,
        )

    def _steps(self, loader: "BatchLoader[HostBatch]") -> None:
        progress, settings = self.progress, self.settings
        self.log.status("running", step=progress.step, total=self.total)
        window = StepWindow()
        while progress.step < self.total:
            rate = self._set_learning_rate(progress.step)
            self.model.network.skeleton_only = progress.step < self.skeleton_steps
            loaded = loader.next()
            parts, norm = self._step(progress.step, loaded)
            progress.step += 1
            self.cursor = loaded.following
            window.add(
                parts,
                norm,
                n_tokens=loaded.batch.n_tokens,
                n_cells=loaded.batch.n_cells,
                waited_seconds=loaded.waited_seconds,
            )
            last = progress.step == self.total
            if progress.step % settings.log_steps == 0 or last:
                figures = window.close() | {"lr": rate}
                self.log.metrics(progress.step, "train", figures)
                eta = window.seconds_per_step * (self.total - progress.step)
                self.log.status("running", step=progress.step, eta=round(eta, 1))
            self.on_progress(ProgressEvent("training", progress.step, self.total, message=""))
            if progress.step % settings.eval_steps == 0 or last:
                self._evaluate()
            stopping = not last and self.should_stop()
            if progress.step % settings.save_steps == 0 or last or stopping:
                self._save()
            if stopping:
                message = f"stopped at step {progress.step} of {self.total}, checkpoint saved"
                raise TrainingInterrupted(message)

    def _to_host(self, arrays: CellBatch) -> HostBatch:
        """Make ready for the device; the loader's thread does this."""
        return HostBatch.of(arrays, pin=self.device.type == "cuda")

    def _set_learning_rate(self, step: int) -> float:
        """Set every group's learning rate for a step; return that of the first.

        The encoder's schedule begins when it joins, after ``train.skeleton_steps``.
        """
        for group, peak in zip(self.optimiser.param_groups, self.peak_rates, strict=True):
            late = self.skeleton_steps if group["part"] == ENCODER else 0
            group["lr"] = peak * learning_rate_factor(
                max(step - late, 0),
                total=self.total - late,
                warmup_ratio=self.settings.warmup_ratio,
                schedule=self.settings.schedule,
            )
        return float(self.optimiser.param_groups[0]["lr"])

    def _step(self, step: int, loaded: Loaded[HostBatch]) -> tuple[LossParts, float]:
        """Do one optimiser step; return the loss and the gradient norm."""
        batch = loaded.batch.to(self.device)
        self.network.train()
        output = self.network(batch)
        parts = masked_loss(
            output.gene_logits,
            output.phenotype_logits,
            batch,
            self.model.config,
            self.loss,
            self.class_weights,
        )
        self.accelerator.backward(parts.total)
        norm = self.accelerator.clip_grad_norm_(
            self.network.parameters(), self.settings.gradient_clip
        )
        norm = float(norm) if isinstance(norm, Tensor) else float(norm or 0.0)
        if math.isfinite(norm):
            self.nonfinite_in_a_row = 0
        else:
            self._note_nonfinite(step, loaded.rows)
        if math.isfinite(norm) or self.accelerator.scaler is not None:
            self.optimiser.step()  # fp16: the scaler skips the step itself and lowers its scale
        self.optimiser.zero_grad()
        return parts, norm

    def _note_nonfinite(self, step: int, rows: NDArray[np.int64]) -> None:
        self.nonfinite_in_a_row += 1
        self.log.event("nonfinite", step=step, rows=rows[:256].tolist())
        logger.warning("step %d skipped: its gradient is not finite", step)
        if self.nonfinite_in_a_row >= MAX_NONFINITE:
            message = (
                f"gradients were not finite for {MAX_NONFINITE} steps in a row (step {step}); lower "
                f"train.learning_rate or use train.precision = 'fp32', then resume the run"
            )
            raise TfxError(message)

    def _evaluate(self) -> None:
        """Score validation cells; keep the model folder of the lowest loss."""
        progress = self.progress
        if len(self.validation) == 0:
            self._keep_model({})
            return
        masked = evaluate_masked(
            self.model,
            self.store,
            self.validation,
            self.loss,
            seed=self.settings.seed,
            class_weights=self.class_weights,
        )
        figures = {
            "loss": masked.loss,
            "loss/genes": masked.gene_loss,
            "loss/phenotypes": masked.phenotype_loss,
            "acc/genes": masked.gene_accuracy,
            "acc/genes_baseline": masked.gene_baseline,
        }
        predicted = predict_phenotypes(self.model, self.store, self.validation)
        for slot, (name, values) in enumerate(self.store.phenotypes.items()):
            truth = np.asarray(self.store.phenotype_codes[self.validation, slot])
            scores = score_phenotype(truth, predicted[name].argmax(axis=1), values)
            if scores.n_cells:
                figures[f"acc/{name}"] = scores.accuracy
        self.log.metrics(progress.step, "validation", figures)
        shown = "  ".join(
            f"{name.removeprefix('acc/')} {value:.3f}"
            for name, value in figures.items()
            if name.startswith("acc/") and name != "acc/genes_baseline"
        )
        self.on_progress(
            ProgressEvent(
                "training",
                progress.step,
                self.total,
                message=f"step {progress.step}: validation loss {masked.loss:.4f}  accuracy: {shown}",
            )
        )
        self.log.event("eval", step=progress.step, loss=masked.loss)
        if masked.loss < progress.best_loss:
            self._keep_model(figures)

    def _keep_model(self, figures: dict[str, float]) -> None:
        progress = self.progress
        progress.best_loss = figures.get("loss", math.inf)
        progress.best_step = progress.step
        progress.best_figures = figures
        self.model.origin |= {
            "run": str(self.log.folder.resolve()),
            "step": progress.step,
            "total_steps": self.total,
            "validation": figures,
        }
        self.model.save(self.log.folder / MODEL_FOLDER)

    def _save(self) -> None:
        progress = self.progress
        state = {
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "best_loss": progress.best_loss,
            "best_step": progress.best_step,
            "best_figures": progress.best_figures,
            "cursor": self.cursor.to_json(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        path = save_checkpoint(
            self.log.checkpoints,
            step=progress.step,
            network=self.accelerator.unwrap_model(self.network),
            state=state,
            keep=self.settings.keep_checkpoints,
        )
        self.log.event("checkpoint", step=progress.step, path=path.name)
        self.log.status("running", checkpoint=path.name, step=progress.step)

    def _resume(self) -> None:
        path = latest_checkpoint(self.log.checkpoints)
        if path is None:
            self.log.event("start", total=self.total)
            return
        state = load_checkpoint(path, self.accelerator.unwrap_model(self.network))
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_random"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = self.progress
        progress.step = int(state["step"])
        progress.best_loss = float(state["best_loss"])
        progress.best_step = int(state["best_step"])
        progress.best_figures = dict(state["best_figures"])
        sampler = self.source.sampler
        if "cursor" in state:
            self.cursor = sampler.resume(Cursor.from_json(state["cursor"]))
        else:  # a checkpoint of tfx 0.1.0, whose order of cells was another
            self.cursor = sampler.at_step(progress.step)
        self.log.event("resume", from_step=progress.step + 1)
        self.on_progress(
            ProgressEvent(
                "training", progress.step, self.total, message=f"resumed at step {progress.step}"
            )
        )
