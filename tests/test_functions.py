"""Functions in the place of notebooks: what they can be told, what their code is, and how they run and fail.

Scoring split over processes gives the scores of one process, and every mix-up is one sentence in each of them. Run by
accelerate this file is also what its processes do (`work`): one launch for all cases, because starting costs.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from helpers import Shape, batch, prompts, tiny
from torch import Tensor
from torch.utils.data import DataLoader

import amp_tutorial as amp
from amp_tutorial.files import ROOT
from amp_tutorial.runs import execute, functions, grid, identity, package_code
from amp_tutorial.runs import record as records
from amp_tutorial.runs.sweep import records_of, sweep

MODULE = '''"""Functions as a sweep calls them."""
import os, sys, time
from pathlib import Path
from amp_tutorial.runs.record import Record
from .scales import SCALE
ROWS = {"one": lambda x: 1 * x, "two": lambda x: 2 * x}
KEPT = []  # what this process did before


def helper(x):
    return ROWS["one"](x)


def unused(x):
    return x


def work(*, x: int = 1, row: str = "one", how: str = "well", log_file: str = "", out: str = "out") -> None:
    KEPT.append(x)
    print("said", x)
    if log_file and how != "vanish":
        with open(log_file, "a") as file:
            file.write(f"{os.getpid()} {len(KEPT)}\\n")
    if how == "raise":
        raise KeyError("one\\ntwo")
    if how == "exit":
        sys.exit(3)
    if how == "die":
        os._exit(7)
    if how == "wait":
        time.sleep(600)
    if how == "vanish":
        os.rename(log_file, log_file + "-away")
    record = Record("work", dict(x=x, out=out))
    record.metric("perplexity", SCALE * ROWS[row](x))
    record.write(Path(out) / "record.json")


def check_work(*, x, **_):
    if x < 0:
        raise ValueError(f"x={x} must be at least 0.")


def by_position(x: int = 1) -> None: ...


def without_default(*, x: int) -> None: ...


def with_a_list(*, x: list = []) -> None: ...
'''
WORK = "sweepable.module:work"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of a user, which this process and its children can import."""
    folder = tmp_path / "code" / "sweepable"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("scales", "SCALE = 1\nOTHER = 1\n"), ("module", MODULE)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    search = os.pathsep.join(filter(None, (str(folder.parent), os.getenv("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", search)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sweepable"]:
        monkeypatch.delitem(sys.modules, name)
    functions._source.cache_clear()
    yield folder / "module.py"
    functions.end_idle()
    functions._source.cache_clear()


def test_it_is_told_what_its_keywords_are(module: Path) -> None:
    known = functions.parameters_of_function(WORK)
    assert [(p.name, p.default, p.kind) for p in known.values()] == [
        ("x", 1, int), ("row", "one", str), ("how", "well", str), ("log_file", "", str), ("out", "out", str),
    ]  # fmt: skip
    assert "sweepable.module" not in sys.modules, "it is read and not imported"
    assert [functions.is_function(n) for n in (WORK, "reproduce", "a/b.ipynb", "C:\\a.ipynb", "a:b")] == [
        True, False, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.at_all:work", "the module nowhere.at_all does not exist"),
        ("sweepable.module:gone", "defines no gone"),
        ("sweepable.module:by_position", r"must take arguments by name only: def by_position\(\*"),
        ("sweepable.module:without_default", "x needs a text, a number, True or False as default"),
        ("sweepable.module:with_a_list", "x needs a text, a number, True or False as default"),
    ],
)
def test_what_no_grid_could_call_is_refused(name: str, said: str, module: Path) -> None:
    with pytest.raises(ValueError, match=said):
        grid.grid_of({"function": name}, "grid.yaml")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"function": WORK, "notebook": "reproduce"}, "say a notebook or a function, not both"),
        ({"function": "work"}, "must be given as package.module:function, not 'work'"),
        ({"function": WORK, "grid": {"y": [1]}}, "no parameter is called 'y'"),
        ({"function": WORK, "grid": {"x": ["a"]}}, "x='a' must be a whole number"),
    ],
)
def test_a_mistake_in_a_block_is_one_sentence(block: dict, said: str, module: Path) -> None:
    with pytest.raises(ValueError, match=said):
        grid.grid_of(block, "grid.yaml")


CHANGES = {  # of which file, what for what, and whether that is another run of the row "one"
    "its body": ("module.py", '"perplexity", SCALE', '"perplexity", 2 * SCALE', True),
    "its row of a table": ("module.py", '"one": lambda x: 1', '"one": lambda x: 3', True),
    "another row": ("module.py", '"two": lambda x: 2', '"two": lambda x: 3', False),
    "one row more": ("module.py", "ROWS = {", 'ROWS = {"three": None, ', False),
    "what it does not call": ("module.py", "return x\n", "return -x\n", False),
    "its module's docstring": ("module.py", "Functions as", "A function as", False),
    "what it imports from beside": ("scales.py", "SCALE = 1", "SCALE = 2", True),
    "what else is there": ("scales.py", "OTHER = 1", "OTHER = 2", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_its_name_holds_the_code_that_it_uses(change: str, module: Path) -> None:
    file, old, new, another = CHANGES[change]
    before = identity.run_id(WORK, {"x": 1, "row": "one"})
    path = module.with_name(file)
    assert path.read_text().count(old) >= 1
    path.write_text(path.read_text().replace(old, new), encoding="utf-8")
    assert (identity.run_id(WORK, {"x": 1, "row": "one"}) != before) == another


def test_a_table_of_which_nobody_names_a_row_counts_whole(module: Path) -> None:
    before = package_code.definition_sha256(module, "helper", ("neither",))
    module.write_text(MODULE.replace('"two": lambda x: 2', '"two": lambda x: 3'), encoding="utf-8")
    assert package_code.definition_sha256(module, "helper", ("neither",)) != before


def test_a_run_is_one_folder_and_the_next_one_finds_its_process_warm(module: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [execute.job(WORK, dict(x=x, row="two", how="well", log_file=str(log), out="out")) for x in (1, 2, 3)]
    outcomes = [execute.execute(job, tmp_path / "out") for job in jobs]
    assert [(o.status, o.error) for o in outcomes] == [("ok", "")] * 3
    assert sorted(path.name for path in Path(outcomes[0].folder).iterdir()) == ["record.json"]
    found = [records.read(Path(o.folder) / "record.json") for o in outcomes]
    assert [r["metrics"]["perplexity"]["value"] for r in found] == [2, 4, 6]
    assert [r["identity"] for r in found] == [job.id for job in jobs]
    assert found[0]["parameters"]["out"] == outcomes[0].folder and len(found[0]["notebook_sha256"]) == 64
    pids, counts = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert len({*pids}) == 1 and counts == ("1", "2", "3")
    assert execute.execute(jobs[0], tmp_path / "out").status == "finished"
    execute.execute(jobs[0], tmp_path / "out", environment={"OMP_NUM_THREADS": "1"}, again=True)
    assert log.read_text().splitlines()[-1].split()[0] not in pids, "another environment is another process"


@pytest.mark.parametrize(
    ("how", "error", "at"),
    [
        ("raise", "KeyError: 'one\\ntwo'", 'module.py, line 25: raise KeyError("one\\ntwo")'),
        ("exit", "SystemExit: 3", "module.py, line 27: sys.exit(3)"),
        ("die", "the process ended by itself (exit status 7), perhaps because memory ran out", ""),
        ("wait", "stopped after 3 seconds, the limit", ""),
    ],
)
def test_a_failure_is_kept_and_stops_no_other(how: str, error: str, at: str, module: Path, tmp_path: Path) -> None:
    values = dict(x=1, row="one", log_file="", out="out")
    limit = 3 if how == "wait" else None
    failed = execute.execute(execute.job(WORK, values | dict(how=how)), tmp_path / "out", limit)
    assert (failed.status, failed.error) == ("failed", error) and at in failed.cell
    kept = Path(failed.folder)
    assert kept.parent.name == "failed"
    assert sorted(path.name for path in kept.iterdir()) == ["failure.txt", "record.json"]
    text = (kept / "failure.txt").read_text(encoding="utf-8")
    assert text.startswith(f"{WORK} failed\n\n{failed.error}") and (how != "raise" or "said 1" in text)
    assert records.read(kept / "record.json")["error"]["message"] == failed.error
    assert execute.execute(execute.job(WORK, values | dict(how="well")), tmp_path / "out").status == "ok"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".locks", *sorted(
        [execute.job(WORK, values | dict(how="well")).id, "failed"])]  # fmt: skip


def test_a_drive_that_vanishes_is_said_and_the_same_command_goes_on(module: Path, tmp_path: Path) -> None:
    """As of a session on Colab whose results lie on a mounted drive: nothing is made in its place."""
    drive, away = tmp_path / "drive", tmp_path / "drive-away"
    first, lost, third = (
        execute.job(WORK, dict(x=x, row="one", how=how, log_file=str(drive) if how == "vanish" else "", out="out"))
        for x, how in ((1, "well"), (2, "vanish"), (3, "well"))
    )
    assert execute.execute(first, drive / "runs").status == "ok"
    for job in (lost, third):
        outcome = execute.execute(job, drive / "runs")
        assert outcome.status == "failed" and "is no longer there (a drive that was unmounted?)" in outcome.error
    assert not (drive / "runs" / ".locks").exists() and not (drive / "runs" / third.id).exists()
    shutil.rmtree(drive, ignore_errors=True)  # what the lost run wrote into the empty place itself
    away.rename(drive)
    assert [execute.execute(job, drive / "runs").status for job in (first, third)] == ["finished", "ok"]


def test_code_that_was_changed_is_loaded_anew(module: Path, tmp_path: Path) -> None:
    def measured() -> float:
        outcome = execute.execute(execute.job(WORK, dict(x=1, row="one", how="well", out="out")), tmp_path / "out")
        return float(records.read(Path(outcome.folder) / "record.json")["metrics"]["perplexity"]["value"])

    assert measured() == 1
    module.write_text(MODULE.replace('"one": lambda x: 1', '"one": lambda x: 5'), encoding="utf-8")
    assert measured() == 5
    assert len(functions._idle) == 1, "the process with the earlier code has ended"


def test_a_process_ends_with_the_one_that_asked(module: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys\nfrom pathlib import Path\nfrom amp_tutorial.runs import functions\n"
        f"functions.call({WORK!r}, Path({str(tmp_path)!r}), dict(how='wait', log_file={str(log)!r}))"
    )
    search = os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))
    asker = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": search})
    end = time.monotonic() + 300
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end and asker.poll() is None
        time.sleep(0.05)
    pid = int(log.read_text().split()[0])
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_sweep_over_a_function(module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    made = grid.grid_of({"function": WORK, "fixed": {"log_file": str(log)}, "grid": {"x": [1, 2, 3, 4]}}, "grid.yaml")
    assert [point.name for point in made] == [f"work x={x}" for x in (1, 2, 3, 4)]
    summary = sweep(made, tmp_path / "out", jobs=2)
    assert (summary.ok, summary.failed, summary.finished) == (4, 0, 0), capsys.readouterr().out
    assert len({line.split()[0] for line in log.read_text().splitlines()}) <= 2, "as many processes as places"
    assert sweep(made, tmp_path / "out").finished == 4
    found = list(records_of(made, tmp_path / "out"))
    assert [record["parameters"]["x"] for _, record in found if record] == [1, 2, 3, 4]
    more = grid.grid_of({"function": WORK, "grid": {"x": [1]}}, "grid.yaml")
    assert [record for _, record in records_of(more, tmp_path / "out")] == [None]


def test_what_its_check_refuses_is_refused_before_anything_runs(module: Path, tmp_path: Path) -> None:
    made = grid.grid_of({"function": WORK, "grid": {"x": [1, -1]}}, "grid.yaml")
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="work x=-1: x=-1 must be at least 0"):
            sweep(made, tmp_path / "out", dry_run=dry_run)
    assert not (tmp_path / "out").exists()


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
