"""Cutting and saving, against reading and writing the checkpoint once, on the same disk in the same run."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file, save_file

import amp_tutorial as amp

from . import common

GOAL = 1.0
SHAPES = ((512, 8), (1024, 8), (1024, 16))  # hidden, layers
SMOKE = ((64, 2),)


def measure(smoke: bool = False) -> dict[str, Any]:
    transformers.logging.disable_progress_bar()
    rows = []
    for hidden, layers in SMOKE if smoke else SHAPES:
        model = common.llama(hidden, layers, 16 if smoke else 64)
        plan = amp.plan(model, amp.score(model, [], "random"), pruning_ratio=0.3)
        with tempfile.TemporaryDirectory() as name:
            dense, copy, small = Path(name) / "dense", Path(name) / "copy", Path(name) / "small"
            amp.save(model, None, dense)
            (file,) = dense.glob("*.safetensors")
            copy.mkdir()

            def read_and_write(file: Path = file, copy: Path = copy) -> None:
                save_file(load_file(file), copy / "model.safetensors", metadata={"format": "pt"})

            def prune_and_save(model: Any = model, plan: amp.Plan = plan, small: Path = small) -> None:
                amp.save(amp.prune(model, plan).model, None, small, overwrite=True)

            def streamed(dense: Path = dense, small: Path = small) -> None:
                shutil.rmtree(small, ignore_errors=True)
                amp.prune_folder(dense, small, pruning_ratio=0.3, criterion="random", progress=False)

            runs: dict[str, common.Run] = {
                "read and write": read_and_write,
                "prune and save": prune_and_save,
                "prune_folder": streamed,
            }
            times = common.in_turn(runs, 2 if smoke else 5)
            rows.append(
                {
                    "hidden": hidden,
                    "layers": layers,
                    "checkpoint_bytes": file.stat().st_size,
                    "removed": plan.achieved,
                    "read_and_write_seconds": sorted(times["read and write"])[len(times["read and write"]) // 2],
                    "ratios": {k: common.ratio(times[k], times["read and write"]) for k in list(runs)[1:]},
                }
            )
    return {"goal": GOAL, "rows": rows}
