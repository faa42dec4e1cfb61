"""Prune a checkpoint larger than the memory allowed for it: `python benchmarks/larger_than_memory.py`. Linux only.

1. Writes a random LLaMA checkpoint, one file for each layer, without ever holding more than one layer.
2. Prunes it by `amp.prune_folder` in a process of its own under a hard limit: `RLIMIT_DATA` (`ulimit -d`), set after
   the imports to what the process has then plus the bound: three decoder layers, what is outside them (embeddings,
   head) and the hidden states of the calibration set. The kernel refuses whatever is beyond. It counts all memory of
   its own, and private mappings of files in their full length, which is how safetensors maps.
3. Does the same in memory (load, score, plan, prune, save) under the same limit: that has to fail, or the limit says
   nothing. `--compare` does it again without the limit and compares every tensor of the two results.

The peaks are looked up from outside, every few milliseconds, in /proc/PID/status: RssAnon (memory of its own) and
RssFile (pages of mapped files, which the kernel takes back when it needs them), both above what it held after its
imports. A peak shorter than the interval may be missed there, but not by the limit.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

MB = 1e6
INTERVAL = 0.002  # seconds between two looks at /proc


def build(folder: Path, hidden: int, layers: int, vocabulary: int, dtype: torch.dtype) -> dict[str, int]:
    """Write the checkpoint part by part; return bytes: of all weights, of one layer, of what is outside the layers."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocabulary,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    parts: dict[str, list[str]] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in shapes:
        parts.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else "outside", []).append(name)
    folder.mkdir(parents=True)
    where: dict[str, str] = {}
    sizes, generator = {}, torch.Generator().manual_seed(0)
    for number, (part, names) in enumerate(parts.items(), start=1):
        tensors = {}
        for name in names:
            noise = torch.randn(shapes[name], generator=generator)
            tensors[name] = (noise * shapes[name][-1] ** -0.5 if noise.ndim == 2 else 1 + 0.1 * noise).to(dtype)
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        sizes[part] = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    return {"weights": sum(sizes.values()), "layer": sizes["model.layers.0"], "outside": sizes["outside"]}


def work(arguments: argparse.Namespace) -> None:
    """In a process of its own: import, say what is held, take the limit, prune."""
    torch.set_num_threads(1)
    import transformers.models.llama.modeling_llama  # noqa: F401  else imported on first use, and counted

    import amp_tutorial as amp

    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, arguments.vocabulary, (arguments.batches, 2, arguments.length), generator=generator)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
    held = memory("self")
    if arguments.limit:
        limit = int(held["VmData"] + arguments.limit * MB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(json.dumps(held), flush=True)
    start, cpu_start = time.perf_counter(), time.process_time()
    if arguments.work == "streamed":
        amp.prune_folder(arguments.source, arguments.target, pruning_ratio=arguments.remove, batches=batches)
    else:
        model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype="auto").eval()
        plan = amp.plan(model, amp.score(model, batches), pruning_ratio=arguments.remove)
        amp.save(amp.prune(model, plan).model, None, arguments.target)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    print(json.dumps(spent), flush=True)


def memory(pid: str) -> dict[str, float]:
    """Bytes that a process has: RssAnon, RssFile, VmData and the highest VmRSS so far (VmHWM)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssFile:", "VmData:", "VmHWM:")
    }


def watched(command: list[str]) -> dict[str, Any]:
    """Run a process and watch its memory; both peaks are above what it held after its imports."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        peak = dict.fromkeys(("RssAnon", "RssFile", "VmHWM"), 0.0)
        while process.poll() is None:
            try:
                now = memory(str(process.pid))
            except (OSError, ProcessLookupError):
                break
            peak = {name: max(value, now.get(name, 0.0)) for name, value in peak.items()}
            time.sleep(INTERVAL)
        rest = process.stdout.read()
        code = process.wait()
        errors.seek(0)
        last = errors.read().strip().rpartition("\n")[2]
    if not first:
        raise RuntimeError(f"The process did not start: {last}")
    held = json.loads(first)
    found: dict[str, Any] = {f"peak_{name}": peak[name] - held[name] for name in ("RssAnon", "RssFile")}
    found |= {"held_RssAnon": held["RssAnon"], "peak_VmRSS_in_all": peak["VmHWM"], "done": code == 0}
    return found | (json.loads(rest) if code == 0 else {"error": last})


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    found = [{k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()} for folder in (a, b)]
    return found[0].keys() == found[1].keys() and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, default=4, help="calibration batches of two texts each")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--remove", type=float, default=0.3)
    parser.add_argument("--limit", type=float, help="MB above what the imports take; the bound by default")
    parser.add_argument("--compare", action="store_true", help="prune in memory without a limit too, and compare")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--work", choices=("streamed", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments)
    if not Path("/proc/self/status").is_file():
        raise SystemExit(
            "This measures through /proc, which only Linux has; amp.prune_folder itself runs elsewhere too."
        )

    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = build(folder / "dense", arguments.hidden, arguments.layers, arguments.vocabulary, dtype)
        activations = arguments.batches * 2 * arguments.length * arguments.hidden * dtype.itemsize
        bound = 3 * sizes["layer"] + sizes["outside"] + activations
        limit = bound / MB if arguments.limit is None else arguments.limit

        def run(work: str, limit: float, target: str) -> dict[str, Any]:
            given = ("hidden", "layers", "vocabulary", "dtype", "batches", "length", "remove")
            options = [f"--{option}={getattr(arguments, option)}" for option in given]
            paths = [f"--source={folder / 'dense'}", f"--target={folder / target}"]
            return watched([sys.executable, __file__, f"--work={work}", f"--limit={limit}", *paths, *options])

        runs = {"prune_folder": run("streamed", limit, "streamed")}
        runs["in memory, same limit"] = run("memory", limit, "limited")
        if arguments.compare:
            runs["in memory, no limit"] = run("memory", 0, "whole")
        figures: dict[str, Any] = {
            "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}, 1 thread",
            "shape": {k: v for k, v in vars(arguments).items() if k not in ("json", "work", "source", "target")},
            "bytes": sizes | {"activations": activations, "bound": bound, "limit": limit * MB},
            "runs": runs,
        }
        if arguments.compare:
            figures["same tensors"] = same(folder / "streamed", folder / "whole")
        shutil.rmtree(folder / "dense")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)
    if not runs["prune_folder"]["done"] or runs["in memory, same limit"]["done"]:
        raise SystemExit("Not shown: prune_folder must work under the limit, and the way in memory must not.")


def show(figures: dict[str, Any]) -> None:
    size = figures["bytes"]
    weights, limit = size["weights"] / MB, size["limit"] / MB
    print(f"\nWeights {weights:.0f} MB; limit {limit:.0f} MB above what the imports take (RLIMIT_DATA).")
    print(
        f"Bound: 3 layers of {size['layer'] / MB:.0f} MB + embeddings and head {size['outside'] / MB:.0f} MB + "
        f"activations {size['activations'] / MB:.0f} MB = {size['bound'] / MB:.0f} MB."
    )
    print(f"\n{'MB above the imports':24}{'own (RssAnon)':>15}{'mapped (RssFile)':>18}{'seconds':>9}{'of CPU':>8}")
    for name, run in figures["runs"].items():
        end = f"{run['seconds']:9.0f}{run['cpu_seconds']:8.1f}" if run["done"] else f"  failed: {run['error'][:60]}"
        print(f"{name:24}{run['peak_RssAnon'] / MB:15.0f}{run['peak_RssFile'] / MB:18.0f}{end}")
    peak = figures["runs"]["prune_folder"]["peak_RssAnon"]
    of_bound, of_weights = peak / size["bound"], peak / size["weights"]
    print(f"\nprune_folder's own peak: {of_bound:.2f} of the bound, {of_weights:.2f} of the weights.")
    if "same tensors" in figures:
        print(f"Same tensors as in memory, bit for bit: {'yes' if figures['same tensors'] else 'NO'}.")


if __name__ == "__main__":
    main()
