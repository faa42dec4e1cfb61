"""Scoring split over processes gives the scores of one process, and every mix-up is one sentence in each of them.

Run by accelerate this file is also what its processes do (`work`): one launch for all cases, because starting costs.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from helpers import Shape, batch, prompts, tiny
from torch import Tensor
from torch.utils.data import DataLoader

import amp_tutorial as amp
from amp_tutorial.files import ROOT

SHAPE = Shape("qwen2", groups=2, group_size=2)
ROWS = prompts((9, 4, 7, 1, 6, 3, 8, 5, 2))  # in twos they make five batches: three for one process, two for the other
BATCHES = [batch(ROWS[i : i + 2]) for i in range(0, len(ROWS), 2)]
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
LIMIT = 300  # seconds, after which a process that hangs ends itself
SPLIT = {"slices": "tokens", "slices by prompts": "prompts", "loader": "tokens", "one has none": "tokens"}
REFUSED = {
    "the same batches": "Two processes were given the same batches",
    "different models": "The processes hold different models",
    "no tokens": "The calibration batches hold no tokens",
    "uneven loader": "repeats prompts",
}


def loader(rows: list[list[int]], even: bool, size: int = 2) -> DataLoader:
    """As accelerate prepares it for this process."""
    config = DataLoaderConfiguration(even_batches=even)
    prepared: DataLoader = Accelerator(cpu=True, dataloader_config=config).prepare(
        DataLoader(rows, batch_size=size, collate_fn=batch)  # type: ignore[arg-type]
    )
    return prepared


def work(folder: Path) -> None:
    """Every case in turn, in each of two processes; in the last one of them fails while the other waits."""
    signal.alarm(LIMIT)  # the launcher starts each process in a session of its own: killing it would not end them
    state = Accelerator(cpu=True)
    rank, world = state.process_index, state.num_processes
    share, model = BATCHES[rank::world], tiny(SHAPE)

    def score(batches: Any, seed: int = 0, average: str = "tokens") -> dict[str, amp.Scores]:
        scored = model if seed == 0 else tiny(SHAPE, seed)
        return amp.score_many(scored, batches, ("amp", "reversed"), average, forward=amp.over_processes)

    def broken() -> Iterator[dict[str, Tensor]]:
        yield from share
        if rank == 1:
            raise RuntimeError("the second process broke down")

    cases: dict[str, Callable[[], dict[str, amp.Scores]]] = {
        "slices": lambda: score(share),
        "slices by prompts": lambda: score(share, average="prompts"),
        "loader": lambda: score(loader(ROWS, even=False)),
        "one has none": lambda: score(BATCHES if rank == 0 else []),
        "even loader": lambda: score(loader(ROWS[:8], even=True)),
        "the same batches": lambda: score(BATCHES),
        "different models": lambda: score(share, seed=rank),
        "no tokens": lambda: score([]),
        "uneven loader": lambda: score(loader(ROWS, even=True)),
        "alone": lambda: amp.score_many(model, share, ("amp", "reversed")),  # without it nobody is asked
        "broken": lambda: score(broken()),
    }
    for name, case in cases.items():
        try:
            found = case()
        except ValueError as error:
            (folder / f"{name} {rank}.txt").write_text(str(error))
        else:
            for criterion, scores in found.items():
                scores.save(folder / f"{name} {rank} {criterion}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    settings = dict(PYTHONPATH=str(ROOT), HF_HOME=str(folder / "home"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), __file__, str(folder)]
    done = subprocess.run(
        command,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT + 60,
        text=True,
    )
    # The other one does not wait for ever.
    assert done.returncode != 0 and "the second process broke down" in done.stdout, done.stdout
    return folder


def same(found: amp.Scores, wanted: amp.Scores) -> None:
    """To the last bit: sums in float64 differ in their last bits at most, which float32 does not show."""
    for field, value in vars(wanted).items():
        mine = getattr(found, field)
        if isinstance(value, list):
            assert torch.equal(torch.stack(mine), torch.stack(value)), field
        else:
            assert mine == value, field


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["amp", "reversed"])
@pytest.mark.parametrize("case", SPLIT)
def test_two_processes_give_the_scores_of_one(case: str, criterion: str, folder: Path) -> None:
    wanted = amp.score(tiny(SHAPE), BATCHES, criterion, SPLIT[case])
    assert (wanted.tokens, wanted.prompts) == (45, 9)
    for rank in range(2):
        same(amp.Scores.load(folder / f"{case} {rank} {criterion}.safetensors"), wanted)


@pytest.mark.slow
def test_a_loader_that_divides_evenly_repeats_nothing(folder: Path) -> None:
    for rank in range(2):
        same(amp.Scores.load(folder / f"even loader {rank} amp.safetensors"), amp.score(tiny(SHAPE), BATCHES[:4]))


@pytest.mark.slow
def test_without_reduce_a_process_scores_its_own_batches(folder: Path) -> None:
    for rank in range(2):
        same(amp.Scores.load(folder / f"alone {rank} amp.safetensors"), amp.score(tiny(SHAPE), BATCHES[rank::2]))


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_mix_up_is_one_sentence_in_every_process(case: str, folder: Path) -> None:
    for rank in range(2):
        said = (folder / f"{case} {rank}.txt").read_text()
        assert REFUSED[case] in said and "\n" not in said
        assert not (folder / f"{case} {rank} amp.safetensors").exists()


@pytest.mark.slow
def test_a_process_that_fails_leaves_no_scores(folder: Path) -> None:
    assert not list(folder.glob("broken*"))


def test_processes_that_are_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="The processes are not connected: make an accelerate.Accelerator"):
        amp.score(tiny(SHAPE), BATCHES, forward=amp.over_processes)
    same(amp.score(tiny(SHAPE), BATCHES), amp.score(tiny(SHAPE), BATCHES))  # without reduce it is nobody's concern


def test_one_process_has_nobody_to_add_up_with() -> None:
    same(amp.score(tiny(SHAPE), BATCHES, forward=amp.over_processes), amp.score(tiny(SHAPE), BATCHES))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
