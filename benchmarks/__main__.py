"""Measure speed and memory: `python -m benchmarks [--parts …] [--smoke] [--json FILE] [--readme docs/speed.md]`.

Writes one JSON file as soon as a part is done, and the same figures as a Markdown table, beside it. `--table` measures
nothing and makes the table from the JSON file that is there.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from amp_tutorial.files.atomic import write_json, write_text

from . import common, scoring, speed, surgery, table

HERE = Path(__file__).parent
# On a GPU:
SHAPES: dict[str, dict[str, Any]] = {
    "LLaMA-2-7B": dict(hidden=4096, layers=32, head_dim=128, neurons=11008, vocabulary=32000),
    "Llama-3-8B": dict(hidden=4096, layers=32, head_dim=128, groups=8, neurons=14336, vocabulary=128256),
    "Phi-2": dict(hidden=2560, layers=32, head_dim=80, neurons=10240, vocabulary=51200, kind="phi"),
}
PAPER = {"LLaMA-7B": 1.25, "LLaMA-2-7B": 1.19}  # speed-up in the paper, 20 and 30 % [second-hand]
TEXTS, LENGTH = 128, 2048
ALIGN = (1, 64, 128)


def larger_than_memory(smoke: bool = False) -> dict[str, Any]:
    """The figures of larger_than_memory.py, which needs processes of its own."""
    if not Path("/proc/self/status").is_file():
        return {"status": "not run", "reason": "memory is looked up in /proc, which only Linux has."}
    small = ["--hidden=256", "--layers=12", "--vocabulary=512", "--batches=1", "--length=32"] if smoke else []
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / "larger_than_memory.py"), f"--json={figures}", *small]
        done = subprocess.run(command, capture_output=True, text=True)
        if not figures.is_file():
            raise RuntimeError(f"larger_than_memory.py failed: {done.stderr.strip().rpartition(chr(10))[2]}")
        found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return found


def gpu(smoke: bool = False) -> dict[str, Any]:
    """Scoring and speed in the shapes of well-known models with random weights, since shapes are what costs time.

    On the first GPU; without one, a status that says so.
    """
    if not torch.cuda.is_available():
        reason = "There is no CUDA device; the CPU parts measure the same at smaller shapes."
        print(f"gpu: not run. {reason}")
        return {"status": "not run", "reason": reason}
    found: list[dict[str, Any]] = []
    for name, settings in SHAPES.items():
        tiny = dict(hidden=256, layers=2, head_dim=64, groups=2 if "groups" in settings else None)
        shape = settings | tiny | dict(neurons=512, vocabulary=1000) if smoke else settings
        dense = common.llama(**shape, dtype=torch.bfloat16, device="cuda")
        given = common.batches(dense, *((256, 64, 2) if smoke else (TEXTS * LENGTH, LENGTH, 4)))
        scored = scoring.compare(dense, given, 3, 1, others=False)
        rows = [
            row
            for batch in (1, 16)
            for ratio in speed.RATIOS
            for row in speed.compare(dense, ratio, ALIGN, 5, prompt=64 if smoke else 512, new=16, batch=batch)
        ]
        tokens = sum(batch["input_ids"].numel() for batch in given)
        found.append({"name": name, "dtype": "bfloat16", "tokens": tokens, "scoring": scored, "rows": rows})
        del dense
        torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(), "paper": PAPER, "models": found}


MEASURES = {
    "scoring": scoring.measure,
    "surgery": surgery.measure,
    "speed": speed.measure,
    "memory": larger_than_memory,
    "gpu": gpu,
}


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    processor = platform.processor() or platform.machine()
    if (cpus := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure what scoring and pruned models cost.")
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--smoke", action="store_true", help="smallest shapes: shows that it runs, and nothing else")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1: the steadiest)")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--readme", type=Path, help="file whose marked part is replaced by the table")
    parser.add_argument("--table", action="store_true", help="measure nothing; make the table from the JSON file")
    options = parser.parse_args(arguments)
    try:
        if options.readme:
            table.marked(options.readme)  # before any work
        if options.table and not options.json.is_file():
            raise ValueError(f"{options.json} is not there to make a table from; leave --table out to measure.")
    except ValueError as error:
        parser.error(str(error))
    if not options.table:
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(options.threads)
        given = sys.argv[1:] if arguments is None else arguments
        found: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks", *given]), "machine": machine()}
        found |= {"seconds": {}, "parts": {}}
        for name in options.parts:
            start = time.perf_counter()
            found["parts"][name] = {"status": "ok"} | MEASURES[name](options.smoke)
            found["seconds"][name] = round(time.perf_counter() - start, 1)
            write_json(options.json, found)
            print(f"{name}: {found['seconds'][name]} s", file=sys.stderr)
    found = json.loads(options.json.read_text(encoding="utf-8"))
    write_text(options.json.with_suffix(".md"), table.table(found) + "\n")
    if options.readme:
        table.into_readme(options.readme, found)
    print(table.table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
