"""Files and folders are written whole or not at all, with ordinary rights, and nothing of anybody else's is removed."""

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import byte_tokenizer, equal, tiny
from safetensors.torch import save_file
from test_checkpoint import killed, largest_file, weights

import amp_tutorial as amp
from amp_tutorial.core.checkpoint import CHECKPOINT
from amp_tutorial.files import PACKAGE
from amp_tutorial.files.atomic import new_folder, write_json, write_text, written_file

TENSORS = {"a": torch.ones(1000)}


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_of_any_new_file(mask: int, expected: int, tmp_path: Path) -> None:
    """safetensors alone gives 0600, which nobody else on a shared disk can read."""
    with umask(mask):
        with written_file(tmp_path / "a.safetensors") as beside:
            save_file(TENSORS, beside)
        write_text(tmp_path / "b.txt", "b")
        amp.save(tiny(), byte_tokenizer(), tmp_path / "model", max_shard_size=20_000)
    found = [tmp_path / "a.safetensors", tmp_path / "b.txt", *(tmp_path / "model").iterdir()]
    assert len(found) > 6 and {rights(path) for path in found} == {expected}


def test_a_file_is_replaced_at_once_and_only_when_complete(tmp_path: Path) -> None:
    path = write_json(tmp_path / "new" / "a.json", {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    with written_file(path) as beside:
        beside.write_text("2")
        assert json.loads(path.read_text()) == {"a": 1}
    assert path.read_text() == "2" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine"), OSError("No space left")])
def test_an_error_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    expected = OSError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, written_file(path) as beside:
        beside.write_text("half")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"Could not write {path}: No space left; the partial output is removed, what was there is untouched."
        )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["text", "safetensors"])
def test_a_full_disk(kind: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a", "old")
    with (
        largest_file(500),
        pytest.raises(OSError, match=r"Could not write .*a: .*File too large.*untouched\.$") as caught,
    ):
        with written_file(path) as beside:
            save_file(TENSORS, beside) if kind == "safetensors" else beside.write_text("x" * 1000)
    assert "\n" not in str(caught.value) and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    script = """
import os, signal, sys
from amp_tutorial.files.atomic import written_file
with written_file(sys.argv[1]) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed(script, path)
    assert path.read_text() == "old"
    left = [other.name for other in tmp_path.iterdir() if other != path]
    assert len(left) == 1 and re.fullmatch(r"\.a\.txt\.[0-9a-f]{8}\.part", left[0])
    assert write_text(path, "new").read_text() == "new"


def test_what_is_in_the_way_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    cases = [
        (dict(path=tmp_path / "folder"), ValueError, "folder is a folder, and a file is to be written"),
        (dict(path=tmp_path / "file", overwrite=False), ValueError, "file is there already; .* or say overwrite=True"),
        (dict(path=tmp_path / "file" / "a"), OSError, "Could not write .*a: .*file is a file where a folder is needed"),
        (dict(path=tmp_path / "file" / "a" / "b"), OSError, "Could not write .*b: .*file is a file where a folder"),
        (dict(path="/dev/null"), ValueError, r"/dev/null is there already; choose another name\.$"),
    ]
    for given, kind, words in cases:
        with pytest.raises(kind, match=words) as caught, written_file(**given):  # type: ignore[arg-type]
            raise AssertionError("the work was begun")
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_a_file_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "a.txt")
    for text in ("one", "two"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "a.txt").read_text() == text


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert write_text("~/a.txt", "a") == tmp_path / "home" / "a.txt"
    assert amp.save(tiny(), byte_tokenizer(), "~/model") == tmp_path / "home" / "model"
    assert amp.load(tmp_path / "home" / "model", device="cpu") and [p.name for p in tmp_path.iterdir()] == ["home"]


@contextmanager
def locked() -> Iterator[Path]:
    """A folder in which this process can't write, whoever runs it."""
    folder, root = Path(tempfile.mkdtemp()), os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)  # nobody
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of another kind")
def test_a_folder_in_which_nothing_can_be_written() -> None:
    with locked() as folder:
        for begun in (
            lambda: written_file(folder / "a"),
            lambda: new_folder(folder / "a"),
            lambda: new_folder(folder / "a/b"),
        ):
            with pytest.raises(OSError, match=r"Could not write .*: Permission denied; .* untouched\.$"), begun():
                raise AssertionError("the work was begun")


# Folders


def saved(folder: Path, seed: int = 1) -> Path:
    return amp.save(tiny(seed=seed), byte_tokenizer(), folder)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "scores.safetensors",
        "adapter_model.safetensors",
        "training_args.bin",
        "plan.json",
        "README.md",
        ".hidden",
        "runs/events",
        "checkpoint-5/model.safetensors",
        "additional_chat_templates/own.txt",
    ],
)
def test_what_is_no_part_of_a_checkpoint_is_never_removed(name: str, tmp_path: Path) -> None:
    target = saved(tmp_path / "model")
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"model holds more than what is replaced: {name}; move that away"):
        amp.save(tiny(seed=2), byte_tokenizer(), target, overwrite=True)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_empty_folders_and_links_are_somebodys_too(tmp_path: Path) -> None:
    target, other = saved(tmp_path / "model"), tmp_path / "other"
    other.mkdir()
    (other / "config.json").touch()
    (target / "logs").mkdir()
    (target / "linked").symlink_to(other)
    with pytest.raises(ValueError, match="replaced: linked, logs; move"):
        amp.save(tiny(), byte_tokenizer(), target, overwrite=True)
    for i in range(5):
        (target / f"a{i}").touch()
    with pytest.raises(ValueError, match="replaced: a0, a1, a2 and 4 more; move"):
        amp.save(tiny(), byte_tokenizer(), target, overwrite=True)


def test_all_that_transformers_writes_for_a_model_can_be_replaced(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    target = amp.save(tiny(seed=1), tokenizer, tmp_path / "model", max_shard_size=20_000)
    assert (target / "additional_chat_templates" / "tools.jinja").is_file()
    amp.save(tiny(seed=2), byte_tokenizer(), target, overwrite=True)
    assert equal(weights(amp.load(target, device="cpu")[0]), weights(tiny(seed=2)))
    assert sorted(path.name for path in target.iterdir()) == sorted(
        path.name for path in saved(tmp_path / "b").iterdir()
    )


def test_what_is_put_there_during_the_work_is_kept(tmp_path: Path) -> None:
    target = saved(tmp_path / "model")
    with new_folder(target, overwrite=True, replaced=CHECKPOINT) as beside:
        (beside / "config.json").write_text("{}")
        (target / "runs").mkdir()
        (target / "runs" / "mine").write_text("mine")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "runs"]
    assert (target / "runs" / "mine").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="file is a file, and a folder is needed; choose another name"):
            amp.save(tiny(), None, tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_working_folder_is_not_pulled_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (".", tmp_path / "here", ".."):
        with pytest.raises(ValueError, match="is or holds the working folder.*choose a folder inside it"):
            amp.save(tiny(), byte_tokenizer(), target, overwrite=True)
    assert not any((tmp_path / "here").iterdir())
    assert saved(Path("model")) == Path("model") and (tmp_path / "here" / "model" / "config.json").is_file()


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="volume is a mount point.*choose a folder inside it"):
            amp.save(tiny(), None, tmp_path / "volume", overwrite=overwrite)
    assert saved(tmp_path / "volume" / "model").is_dir()


@pytest.mark.skipif(not Path("/proc/self/mountinfo").is_file(), reason="no list of mounts")
def test_mounts_of_the_same_disk_are_known_by_the_systems_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder bound to another place on one disk is no mount point for `ismount`."""
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    with pytest.raises(ValueError, match="/proc is a mount point"):
        amp.save(tiny(), None, "/proc", overwrite=True)


def test_the_source_is_known_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "dense")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    model, tokenizer = amp.load("dense", device="cpu")
    monkeypatch.chdir(tmp_path / "work")
    for given in (tokenizer, None):
        with pytest.raises(ValueError, match="dense is or holds the folder this model was loaded from"):
            amp.save(model, given, "../dense", overwrite=True)
    assert equal(weights(amp.load(tmp_path / "dense", device="cpu")[0]), weights(tiny(seed=1)))


# One way


ELSEWHERE = {
    "files/atomic.py",
    "course/sources.py",  # text of a cell
    "files/downloads.py",  # what has come of a download outlives a kill, to go on from; then it is moved
    "runs/record.py",  # a line a stage, for whoever watches the run
    "runs/this_machine.py",  # a switch of the system
}


def test_nothing_is_written_in_another_way() -> None:
    writes = re.compile(r"\.write_(text|bytes)\(|open\([^)\n]*[\"'][wax]b?\+?[\"']|beside\.replace\(")
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        found = writes.findall(path.read_text(encoding="utf-8"))
        assert bool(found) <= (name in ELSEWHERE), f"{name} writes by itself; see files/atomic.py"
