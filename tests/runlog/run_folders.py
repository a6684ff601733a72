"""Run folders for the tests, written as training writes them."""

from core.runlog import RunWriter

PRESET = """\
name = "{name}"  # name of the file

[data]
files = ["cells.h5ad"]  # {name}.toml:2
genes = 32  # default

[masking]
genes = {mask}  # {name}.toml:5

[train]
learning_rate = {rate}  # --set
batch_size = 32  # default
"""


class Clock:
    """Seconds since 1970, ten more at every question."""

    def __init__(self, now=1_000_000.0):
        self.now = now

    def __call__(self):
        self.now += 10.0
        return self.now


def write_run(
    folder, *, rate=0.001, mask=0.15, store="k1", losses=(3.0, 2.0, 2.5), accuracies=None
):
    """Write a run of an evaluation per loss, five steps apart, each with a checkpoint."""
    accuracies = accuracies or [0.5 + 0.1 * place for place in range(len(losses))]
    facts = {
        "name": folder.name, "store": f"stores/{store}", "store_key": store, "parameters": 12_345,
        "genes": 32, "phenotypes": {"sex": ["female", "male"]}, "device": "cpu",
        "precision": "no", "processes": 1,
    }  # fmt: skip
    config = PRESET.format(name=folder.name, rate=rate, mask=mask)
    with RunWriter(folder, run=facts, config=config, clock=Clock()) as writer:
        writer.event("start", total=5 * len(losses))
        for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1):
            step = 5 * number
            speed = {"cells_per_second": 100.0, "mfu": 0.25}
            writer.metrics(step, "train", {"loss": loss - 0.5, **speed})
            metrics = {"loss": loss, "acc/genes": 0.8, "acc/sex": accuracy, "acc/age": 0.25}
            writer.metrics(step, "validation", metrics)
            writer.event("eval", step=step, loss=loss)
            checkpoint = folder / "checkpoints" / f"step-{step:08d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "weights.safetensors").write_bytes(b"x" * 1000)
            (checkpoint / "complete.json").write_text("{}")
            writer.event("checkpoint", step=step, path=checkpoint.name)
            writer.status("running", step=step, total=5 * len(losses), eta=60.0)
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"x" * 2000)
        writer.system(cpu_percent=50.0, process_memory=10**9, gpus=[{"index": 0, "power": 350.0}])
        writer.status("finished", eta=0.0)
        writer.event("end", step=step)
    return folder
