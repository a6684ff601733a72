"""The figures of `engine_gpu` as Markdown."""

from engine_routes import PARTS

MUST, GOAL, STRETCH = 0.30, 0.40, 0.50
WAIT_GOAL = 0.02
PADDED_GOAL = 3.0


def tables(results: dict) -> str:
    """Write all tables; what failed is listed at the end."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    peak = results["peak"]
    listed = "not listed" if peak["datasheet"] is None else f"{peak['datasheet'] / 1e12:,.0f}"
    parts = [
        machine,
        f"bf16 peak, TFLOP/s: datasheet {listed}, large matrix product "
        f"{peak['measured'] / 1e12:,.1f}",
        _steps(results),
        _goals(results),
        _originals(results),
        _route_errors(results),
        _route_times(results),
    ]
    if results["loader"]:
        found = results["loader"]
        parts.append(
            f"Loader: training waited {found['wait_share']:.2%} of its time at "
            f"{found['cells_per_second']:,.0f} cells/s; alone it gives "
            f"{found['loader_alone_cells_per_second']:,.0f} cells/s"
        )
    parts += [f"**Failed**: {name}: {error}" for name, error in results["errors"].items()]
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _steps(results: dict) -> str:
    rows = [
        [
            name, f"{found['cells']}", found["route"], f"{found['seconds'] * 1e3:.1f}",
            f"{found['cells_per_second']:,.0f}", f"{found['tokens_per_second']:,.0f}",
            f"{found['mfu']:.1%}", f"{found['mfu_computed']:.1%}", _gib(found["peak_gib"]),
            f"{found['first_step_seconds']:.1f}",
        ]
        for name, found in results["steps"].items() if found
    ]  # fmt: skip
    head = ["tfx", "cells", "route", "ms a step", "cells/s", "tokens/s", "MFU", "MFU, computed",
            "peak GiB", "first step, s"]  # fmt: skip
    return _table(head, rows)


def best_steps(results: dict) -> dict[str, dict]:
    """Shape -> the faster of eager and compiled layers."""
    best: dict[str, dict] = {}
    for name, found in results["steps"].items():
        shape = name.rsplit(", ", 1)[0]
        if found and (shape not in best or found["seconds"] < best[shape]["seconds"]):
            best[shape] = found
    return best


def _goals(results: dict) -> str:
    rows = []
    for shape, found in best_steps(results).items():
        share = found["mfu"]
        verdict = "missed"
        for bar, word in ((MUST, "must"), (GOAL, "goal"), (STRETCH, "stretch")):
            verdict = f"met: {word}" if share >= bar else verdict
        rows.append([f"MFU, {shape}", "30 / 40 / 50 %", f"{share:.1%}", verdict])
        padded = results["originals"].get(f"{shape}, sdpa, dropout 0")
        if padded and shape == "expressed":
            times = found["cells_per_second"] / padded["cells_per_second"]
            verdict = "met" if times >= PADDED_GOAL else "missed"
            rows.append(
                ["useful cells/s, x padded sdpa", f"{PADDED_GOAL:g}", f"{times:.1f}", verdict]
            )
    if results["loader"]:
        share = results["loader"]["wait_share"]
        verdict = "met" if share < WAIT_GOAL else "missed"
        rows.append(["waiting for cells", f"< {WAIT_GOAL:.0%}", f"{share:.2%}", verdict])
    return _table(["figure", "must / goal / stretch", "measured", ""], rows)


def _originals(results: dict) -> str:
    best = best_steps(results)
    rows = []
    for name, found in results["originals"].items():
        if found:
            shape = name.split(", sdpa")[0].split(", eager")[0]
            times = ""
            if shape in best:
                times = f"{best[shape]['cells_per_second'] / found['cells_per_second']:.1f}"
            rows.append(
                [name, f"{found['cells']}", f"{found['cells_per_second']:,.0f}", times,
                 _gib(found["peak_gib"])]
            )  # fmt: skip
    head = ["originals' maths, padded, bf16", "cells", "cells/s", "tfx, times as fast", "peak GiB"]
    return _table(head, rows)


def _route_errors(results: dict) -> str:
    rows = []
    for row in results["routes"] or []:
        start = [row["route"], row["dtype"], row["cells"]]
        if "refused" in row:
            rows.append([*start, "", "", "", "", row["refused"]])
        else:
            errors = [f"{row[part]:.1e}" for part in PARTS]
            rows.append([*start, *errors, "right" if row["right"] else "**WRONG**"])
    losses = results["route_losses"] or {}
    said = ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items())
    head = ["route against float64", "precision", "cells", *PARTS, ""]
    table = _table(head, rows)
    return f"{table}\n\nLoss of one model and batch, bf16, by route: {said}" if said else table


def _route_times(results: dict) -> str:
    rows = [
        [row["shape"], row["route"], f"{row['ms']:.2f}", f"{row['tflops']:.1f}"]
        for row in results["route_times"] or []
    ]
    return _table(["attention alone, there and back", "route", "ms", "TFLOP/s"], rows)
