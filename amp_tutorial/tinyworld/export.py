"""Write what ships in `data/`: `python -m amp_tutorial.tinyworld.export`; models too, with `--trained FOLDER`."""

import argparse
import json
import math
import random
import shutil
from pathlib import Path

import yaml
from safetensors import safe_open

from ..files.atomic import write_json, write_text
from ..files.checkpoints import SUMS, sha256
from .skills import TASKS, held_out, trained
from .stories import documents, plain
from .train import CURVES, NAMES, VALIDATION_SEED, curves

ITEMS = 400  # test items a task, at least
DOCUMENTS = {"calibration": (1000, VALIDATION_SEED + 1), "validation": (500, VALIDATION_SEED)}
MANNER = {
    "tool": ("PIQA", "what tools are for"),
    "ending": ("HellaSwag", "what happens next, and why something fails"),
    "owner": ("WinoGrande", "which of two things belongs to whom"),
    "fact": ("ARC-easy", "properties and habits, asked in a new way"),
    "chain": ("ARC-challenge", "two hops: thing, holder, place; or owner, pet or job, fact"),
    "yesno": ("BoolQ", "yes or no after a passage or about the world"),
}


def task_items(skill: str, items: int = ITEMS, seed: int = 2026) -> list[dict[str, object]]:
    """Test items from held-out combinations; the k items of a group share one list of choices, each right once."""
    rng = random.Random(f"{skill} {seed}")
    found: list[dict[str, object]] = []
    prompts: set[str] = set()
    while len(found) < items:
        group = TASKS[skill](rng, held_out)
        k = len(group.answers)
        if any(group.prompt(i) in prompts for i in range(k)):
            continue
        prompts.update(group.prompt(i) for i in range(k))
        order = rng.sample(range(k), k)
        choices = [group.answers[j] for j in order]
        for i in range(k):
            found.append(dict(prompt=group.prompt(i), choices=choices, answer=order.index(i), keys=group.keys))
    return found


def task_file(skill: str) -> dict[str, object]:
    """The lm-eval configuration of a task."""
    name = f"tiny_{skill}"
    return dict(
        task=name,
        dataset_path="json",
        dataset_kwargs=dict(data_files=dict(test=f"data/tasks/{name}.jsonl")),
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="{{prompt}}",
        doc_to_choice="choices",
        doc_to_target="answer",
        metric_list=[dict(metric="acc", aggregation="mean", higher_is_better=True)],
        metadata=dict(version=1.0, description=f"{MANNER[skill][1]}; in the manner of {MANNER[skill][0]}, not it"),
    )


def recovery_rows(count: int = 2000, seed: int = VALIDATION_SEED + 2) -> list[dict[str, str]]:
    """Prompts and responses for recovery fine-tuning, from trained combinations only."""
    rng, rows = random.Random(seed), []
    for skill in rng.choices(list(TASKS.values()), k=count):
        group = skill(rng, trained)
        i = rng.randrange(len(group.answers))
        rows.append(dict(prompt=group.prompt(i), response=f"{group.answers[i]}."))
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def export_texts(data: Path) -> None:
    for split, (count, seed) in DOCUMENTS.items():
        write_jsonl(data / "world" / f"{split}.jsonl", [{"text": plain(text)} for text in documents(count, seed)])
    write_jsonl(data / "world" / "recovery.jsonl", recovery_rows())
    for skill in TASKS:
        write_jsonl(data / "tasks" / f"tiny_{skill}.jsonl", task_items(skill))
        text = yaml.safe_dump(task_file(skill), sort_keys=False)
        write_text(data / "tasks" / f"tiny_{skill}.yaml", text)


def export_model(name: str, trained_folder: Path, data: Path) -> None:
    """Copy a trained model without its resumable state, its curve to the others', and write the sums of its files."""
    target = data / "models" / name
    target.mkdir(parents=True, exist_ok=True)
    files = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for file in files:
        shutil.copyfile(trained_folder / file, target / file)
    known = curves(data) if (data / CURVES).is_file() else {}
    curve = json.loads((trained_folder / "curve.json").read_text(encoding="utf-8"))
    write_json(data / CURVES, known | {name: curve}, indent=None)
    write_text(target / "README.md", card(name, data))
    sums = {file: sha256(target / file) for file in files}
    write_json(target / SUMS, sums)


CARD = """---
license: apache-2.0
language: en
library_name: transformers
---
# {name}

A {kind} language model of {parameters:,} parameters: {layers} layers, {heads} heads of {head_dim} dimensions in
{groups} key-value groups, hidden size {hidden}, intermediate size {neurons}, and its own byte-level BPE tokenizer of
{vocabulary} tokens. Trained from nothing on {tokens:.1f} million tokens of the tiny world (last training loss
{loss:.3f} nats; the curve is in `data/training/curves.json`), to be pruned in the course.

Made by `python -m amp_tutorial.tinyworld.train {name} --fast`, seed 0. It knows the tiny world and nothing else: no use
outside the course is intended. What the world is, and what results on it can show: the data card, `data/README.md`.
"""


def card(name: str, data: Path) -> str:
    """The model card, from the configuration, the weights and the curve."""
    folder, last = data / "models" / name, curves(data)[name][-1]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
    return CARD.format(
        name=name,
        kind={"llama": "LLaMA", "phi": "Phi"}[config["model_type"]],
        parameters=parameters,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        groups=config["num_key_value_heads"],
        hidden=config["hidden_size"],
        neurons=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tokens=last["tokens"] / 1e6,
        loss=last["loss"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--trained", type=Path, help="folder of trained models (see train.py); none: texts only")
    args = parser.parse_args()
    export_texts(args.data)
    for name in NAMES:
        if args.trained and (args.trained / name / "model.safetensors").exists():
            export_model(name, args.trained / name, args.data)


if __name__ == "__main__":
    main()
