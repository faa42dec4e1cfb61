"""The commands: what they print, what they refuse, and with which status they end.

The doctor: one line each, a mend that names its command, and no torch needed to speak.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers import RECORD, small
from safetensors.torch import save_file

from amp_tutorial import cli
from amp_tutorial.files import DATA, ROOT
from amp_tutorial.runs import doctor, execute, fetch, parameter_values, single_run, this_machine
from amp_tutorial.runs.parameters import checked, notebook_named, parameters_of


def test_run_prints_its_numbers_and_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["run", "--notebook", str(small(tmp_path / "n.ipynb", RECORD)), "-p", "x=7", "--out", str(tmp_path / "out")]
    assert cli.main([*asked, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert "x=7" in capsys.readouterr().out
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "perplexity               7" in said and str(tmp_path / "out") in said
    assert cli.main(asked) == 0 and "finished before" in capsys.readouterr().out
    assert cli.main([*asked, "-p", "word=b", "--limit", "0.01"]) == 1 and "the limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["-p", "wrod=1"], "no parameter is called 'wrod'. Did you mean word?"),
        (["-p", "x=many"], "x='many' must be a whole number"),
        (["--preset", "gone"], "No preset is called 'gone'"),
        (["--notebook", "gone"], "No notebook is called 'gone'"),
        (["--notebook", "gone.ipynb"], "No notebook gone.ipynb"),
        (["--limit", "-1"], "--limit -1 must be more than 0"),
        (["--limit", "nan"], "--limit nan must be more than 0"),
        (["-p", "x"], "-p x: say NAME=VALUE"),
        (["-p", "x=1", "-p", "x=2"], "-p x is given twice"),
        (["-p", "out=elsewhere"], "each run has a folder of its own in --out"),
        (["-p", "sure=True"], "sure='True' must be true or false, such as true"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture, given: list[str], match: str
) -> None:
    notebook, out = small(tmp_path / "n.ipynb", RECORD), tmp_path / "out"
    assert cli.main(["run", "--notebook", str(notebook), "--out", str(out), *given]) == 2
    said = capsys.readouterr().err.strip()
    assert match in said and "\n" not in said and not out.exists()


def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    notebook = small(tmp_path / "n.ipynb", RECORD)
    assert cli.main(["run", "--notebook", str(notebook), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Cannot write into" in capsys.readouterr().err


def test_no_command_needs_torch_to_start() -> None:
    modules = ("cli", "reports.table", "runs.execute", "runs.single_run")
    imports = "\n".join(f"import amp_tutorial.{module}" for module in modules)
    code = f"import sys\n{imports}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ([], "required: COMMAND"),
        (["gone"], "'gone'"),
        (["run", "--limt", "1"], "--limt"),
        (["run", "--limit", "x"], "'x'"),
    ],
)
def test_a_misspelt_command_is_one_sentence(capsys: pytest.CaptureFixture, asked: list[str], match: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(asked)
    said = capsys.readouterr().err.strip()
    assert said.startswith("amp-tutorial") and match in said and "\n" not in said


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"amp-tutorial {version('amp-tutorial')}\n"


def test_a_fault_in_one_command_stops_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(cli.COMMANDS, "sweep", ("a broken one", "amp_tutorial.runs.not_there", ""))
    assert cli.main(["run", "--notebook", "gone"]) == 2
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "a broken one" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_ends_with_an_example_that_the_command_takes(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    (example,) = [line for line in said.splitlines() if line.startswith("example: ")]
    taken = example.split()[3:]
    assert example.split()[1:3] == ["amp-tutorial", command]
    assert all(option in said.replace(example, "") for option in taken if option.startswith("-"))


def test_help_of_run_lists_the_parameters_of_the_notebook(capsys: pytest.CaptureFixture) -> None:
    for asked, expected in (([], 'criterion="amp"  amp, reversed'), (["--notebook", "01"], "ratio=0.3  share of")):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["run", *asked, "--help"])
        assert f"  {expected}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--notebook", "gone", "--help"])
    assert "No notebook is called 'gone'" in capsys.readouterr().out


def test_a_run_that_another_process_holds_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    notebook, out = small(tmp_path / "n.ipynb", RECORD), execute.writable(tmp_path / "out")
    run = execute.job(notebook, checked(parameters_of(notebook), {}, "test"))
    with FileLock(out / ".locks" / f"{run.id}.lock"):
        assert cli.main(["run", "--notebook", str(notebook), "--out", str(out)]) == 1
    assert f"Another process is at run {run.id}" in capsys.readouterr().err


def test_prefetch_fetches_what_is_read_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["run", "--preset", "ci", "--prefetch", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "The model tiny-llama is here." in said and "recovery_text=tinyworld" in said
    assert "tasks=tiny" in said and not list(tmp_path.iterdir())


def test_prefetch_for_a_lesson_on_another_model_takes_what_that_would_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[tuple[str, str]] = []
    monkeypatch.setattr(parameter_values, "rows", lambda source, split: read.append((source, split)))
    monkeypatch.setattr(parameter_values, "load_tasks", lambda names, folder: read.append((names, folder)))
    shown = list(fetch.all_of(dict(model=str(tmp_path), text="", responses="", tasks="", task_folder="", out="out")))
    assert read == [("c4", "calibration"), ("c4", "validation"), ("alpaca", "recovery"), ("paper", "")]
    assert shown[0] == f"The model {tmp_path} is here."
    list(fetch.all_of(dict(model="tiny-llama", text="", tasks="", out="out")))
    assert len(read) == 4, "the tiny world comes with the package"
    with pytest.raises(ValueError, match=r"The hub does not give owner/nothing \("):
        list(fetch.all_of(dict(model="owner/nothing", text="")))


def test_a_lesson_goes_by_its_number() -> None:
    assert notebook_named("04").stem == "04_recovery"


def test_the_first_numbers_of_a_record_are_shown() -> None:
    metrics = {
        "dense/perplexity": dict(value=2.5, low=2.0, high=3.0, unit="", n=1),
        "tuned/perplexity": dict(value=None, low=None, high=None, unit="", n=1),
        "tuned/tiny_fact": dict(value=0.5, low=None, high=None, unit="", n=1),
    }
    said = single_run.summary(dict(status="ok", seconds=61.0, metrics=metrics))
    assert said.splitlines() == ["ok in 61 s", "  dense/perplexity         2.5  (95 % interval 2 to 3)"]
    of_texts = {"name": "dense/perplexity", "spread": "95 % of the texts"}
    told = single_run.summary(dict(status="ok", seconds=61.0, metrics=metrics, signature=of_texts))
    assert told == said.replace("95 % interval", "95 % of the texts"), "bounds that are no interval are not called one"
    del metrics["dense/perplexity"]
    assert "tiny_fact" in single_run.summary(dict(status="ok", seconds=61.0, metrics=metrics)), (
        "without these, all others"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "ratio=-0.1"], "ratio=-0.1 must be at least 0 and less than 1"),
        (["-p", "ratio=7"], "ratio=7.0 must be at least 0 and less than 1"),
        (["-p", "seed=-1"], "seed=-1 must be at least 0"),
        (["-p", "seed=1000000000000000000000000000000"], "must be at least 0 and less than 4294967296"),
        (["-p", "criterion=ampp"], "Unknown criterion 'ampp'"),
        (["-p", "device=gpu"], "device='gpu' must be auto, cpu, cuda"),
        (["-p", "dtype=int8"], "dtype='int8' must be one of 'float32'"),
        (["-p", "rate=1e9"], "rate=1000000000.0 must be more than 0 and at most 1"),
        (["-p", "epochs=0"], "epochs=0 must be at least 1"),
        (["-p", "window=1"], "window=1 must be at least 2"),
        (["-p", "windows=-1"], "windows=-1 must be at least 0"),
        (["-p", "country=../.."], "country='../..' must be three capital letters"),
        (["-p", "country=ABC"], "No grid for country='ABC'"),
        (["-p", "tasks=foo"], "Unknown task 'foo'; choose from tiny_tool"),
        (["-p", "tasks=piqq"], "Unknown task 'piqq'; the nearest is piqa"),
        (["-p", "tasks="], "tasks='' names an empty task"),
        (["-p", "tasks=tiny_tool,"], "tasks='tiny_tool,' names an empty task"),
        (["-p", "calibration_text=gone.txt"], "No text source 'gone.txt'"),
        (["-p", "calibration_text=latin.txt"], "is not UTF-8"),
        (["-p", "calibration_text="], "calibration_text is empty"),
        (["-p", "calibration_text=blank.txt"], "blank.txt holds no text"),
        (["-p", f"calibration_text={'x' * 3000}"], "(3,000 characters) is a text, not a source"),
        (
            ["-p", "calibration_text=alpaca", "-p", "local_copies=empty"],
            "holds no alpaca",
        ),
        (["-p", "local_copies=gone"], "local_copies='gone' is no folder"),
        (["-p", "task_folder=gone"], "task_folder='gone' is no folder"),
        (["-p", "model="], "model is empty"),
        (["-p", "model=nope"], "Unknown model 'nope'"),
        (["-p", f"model={'x' * 5000}"], "Unknown model 'xxx"),
        (["-p", "model=pickles"], "has its weights only as pickles (pytorch_model.bin)"),
        (["-p", "model=cut"], "model.safetensors is damaged or cut short"),
        (["-p", "model=bare"], "bare holds no weights"),
        (["-p", "model=dumb"], "dumb holds no tokenizer"),
        (
            ["-p", "model=deeper"],
            "deeper says num_hidden_layers=9, and has the weights of 6: one of the two",
        ),
        (["-p", "model=wider"], "wider says (7,000, 128), and its embedding is (1536, 128): one of the two"),
        (["-p", "model=bare/config.json"], "bare/config.json is a file and no GGUF file"),
        (["--notebook", "05", "-p", "ratio=0"], "ratio=0 removes nothing"),
        (["--notebook", "05", "-p", "sweep=gone"], "sweep='gone' is not there"),
        (["--notebook", "02", "-p", "text=gone.txt"], "No text source 'gone.txt'"),
        (["--notebook", "02", "-p", "model=pickles"], "has its weights only as pickles"),
        (["--notebook", "07", "-p", "text=latin.txt"], "is not UTF-8"),
        (["--notebook", "08", "-p", "responses=gone.jsonl"], "No text source 'gone.jsonl'"),
        (["--notebook", "04", "-p", "rate=0"], "rate=0.0 must be more than 0 and at most 1"),
        (["--notebook", "04", "-p", "ratio_deep=5"], "ratio_deep=5.0 must be at least 0 and less than 1"),
        (["--notebook", "04", "-p", "samples=0"], "samples=0 must be at least 1"),
        (["--notebook", "B", "-p", "align=0"], "align=0 must be at least 1"),
        (["--notebook", "05", "-p", "ratio=5"], "ratio=5.0 must be at least 0 and less than 1"),
        (["--notebook", "05", "-p", "preset=huge"], "preset='huge' must be one of 'smallest', 'full'"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    for name, files in dict(empty="", pickles="pytorch_model.bin", cut="model.safetensors", bare="", dumb="").items():
        (tmp_path / name).mkdir()
        for file in ("config.json", *files.split()) if name != "empty" else ():
            (tmp_path / name / file).write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "dumb" / "model.safetensors")
    for name, settings in dict(deeper=dict(num_hidden_layers=9), wider=dict(vocab_size=7000)).items():
        shutil.copytree(DATA / "models" / "tiny-llama", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | settings
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    asked = ["run", *([] if "--notebook" in words else ["--preset", "ci"]), *words, "--out", "runs"]
    for dry_run in (["--dry-run"], []):
        assert cli.main([*asked, *dry_run]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_lesson_asks_for_the_splits_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Lesson 9 measures on one text and calibrates on another: a test split of the first will do."""
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wikitext2_test.txt").write_text("Some text. " * 99)
    (tmp_path / "c4.txt").write_text("Other text. " * 99)
    asked = ["run", "--dry-run", "--notebook", "09", "-p", "model=tiny-llama", "-p", f"local_copies={tmp_path}"]
    assert cli.main([*asked, "--out", str(tmp_path / "runs")]) == 0, capsys.readouterr().err


def test_a_device_that_is_not_here_can_be_forecast_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["run", "--preset", "ci", "-p", "device=cuda:99", "--out", str(tmp_path / "runs")]
    assert cli.main([*asked, "--dry-run"]) == 0 and cli.main(asked) == 2
    assert "device='cuda:99' is not there" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("out", ["a_file", "a_file/inside", "", "x" * 300])
def test_a_dry_run_looks_where_the_runs_go(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").write_text("kept")
    (tmp_path / "grid.yaml").write_text("preset: ci\ngrid: {ratio: [0.3]}\n")
    monkeypatch.chdir(tmp_path)
    for asked in (["run", "--preset", "ci"], ["sweep", "grid.yaml"]):
        assert cli.main([*asked, "--out", out, "--dry-run"]) == 2
        said = "is no name of a file" if len(out) > 255 else "is no folder" if out else "--out is empty"
        assert said in capsys.readouterr().err
    assert (tmp_path / "a_file").read_text() == "kept"


@pytest.mark.parametrize("address", ["foo", "tcp://", "tcp:/host:1", "tcp://host:port"])
def test_what_is_no_address_of_a_scheduler_is_refused_at_once(address: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("preset: ci\ngrid: {ratio: [0.3]}\n")
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--scheduler", address, "--dry-run"]) == 2


def test_a_file_that_cannot_be_read_or_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert cli.main(["gather", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("ratio: [0.3, 7]", "ratio=7.0"),
        ("criterion: [amp, ampp]", "'ampp'"),
        ("model: [tiny-llama, nope]", "Unknown model 'nope'"),
    ],
)
def test_a_sweep_refuses_before_any_run(grid: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "grid.yaml").write_text(f"preset: ci\ngrid: {{{grid}}}\n", encoding="utf-8")
    for dry_run in (["--dry-run"], []):
        assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "runs"), *dry_run]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_row_for_a_family_is_given_on_the_command_line(tmp_path: Path) -> None:
    """Before anything that reads the table; a file that is none is one sentence."""
    rows = tmp_path / "rows.yaml"
    rows.write_text("families: {mine: {query: self_attn.q_proj, neurons_in: mlp.up}}")
    for said, words in (
        (["--families", str(rows)], "The row 'mine' is wrong: neurons_in must be a list"),
        (["--families=gone.yaml"], "gone.yaml is no table of families"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "amp_tutorial.cli", *said, "run", "--preset", "ci", "--dry-run"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_what_a_model_cannot_lose_and_what_is_not_to_be_had_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "execute", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(parameter_values, "hub_answers", lambda: False)
    for words, asked in (
        ("heads=99 is not possible", ["-p", "ratio=0", "-p", "heads=99"]),
        ("heads=99 is not possible", ["-p", "ratio=0", "-p", "heads=99", "--dry-run"]),
        ("would leave every layer without a head", ["--notebook", "03_surgery", "-p", "ratio=0.999"]),
        ("nobody/nothing is neither here nor in the cache", ["-p", "model=nobody/nothing"]),
        ("c4 is neither cached nor to be had", ["-p", "calibration_text=c4"]),
    ):
        assert cli.main(["run", *asked, "--out", "runs"]) == 2
        assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_lesson_without_its_model_is_left_to_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lesson 9 shows what was found when it was built."""
    ran: list[str] = []

    def noted(run: execute.Job, *_: object) -> execute.Outcome:
        ran.append(run.id)
        return execute.Outcome(run.id, "busy", 0.0)

    monkeypatch.setenv("AMP_TUTORIAL_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr(parameter_values, "hub_answers", lambda: False)
    monkeypatch.setattr(execute, "execute", noted)
    assert cli.main(["run", "--notebook", "09_real_model", "--out", str(tmp_path / "runs")]) == 1 and len(ran) == 1


SCRIPT = """
import argparse, sys
from amp_tutorial.runs import doctor
assert "torch" not in sys.modules, "importing the doctor imports torch"
parser = argparse.ArgumentParser()
doctor.add_arguments(parser)
sys.exit(doctor.command(parser.parse_args(sys.argv[1:])))
"""


def run(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    path = os.pathsep.join([*environment.pop("PYTHONPATH", "").split(os.pathsep), str(ROOT)]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def found(out: Path = Path("out"), online: bool = False) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {"ok": [], "note": [], "mend": []}
    for line in doctor.lines(out, online):
        told[line.state].append(line.text)
    return told


def named(texts: list[str], what: str) -> str:
    [text] = [text for text in texts if what in text]
    return text


def test_this_environment_is_well_and_every_line_says_so(tmp_path: Path) -> None:
    status, lines = run("--out", str(tmp_path / "not" / "yet"))
    assert status == 0, lines
    assert all(line[:6].rstrip() in ("ok", "note") for line in lines)
    text = "\n".join(lines)
    expected = (
        "Python 3.|torch |transformers |peft |RAM: |can be written|tiny-llama: |hub cache|HF_HUB_OFFLINE|HF_HOME|"
        "tiny_chain|kernel python3|loaded versions|codecarbon|CUDA"
    )
    for what in expected.split("|"):
        assert what in text
    assert "huggingface.co can" not in text, "not asked"
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_it_speaks_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open\\nand more')")
    status, lines = run("--out", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert status == 1
    ill = [line for line in lines if line.startswith("mend")]
    assert len(ill) == 1 and "torch cannot be imported (libtorch_cpu.so: cannot open); run: pip install" in ill[0]
    assert any("kernel python3" in line for line in lines) and any("RAM" in line for line in lines)


def test_requirements_that_are_not_met_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=999", "no-such-thing>=1", "torch>=2", "ipython>=999", "x; extra == 'test'"]
    monkeypatch.setattr(this_machine, "requires", lambda _: asked)
    told = found()
    text = named(told["mend"], "no-such-thing")
    assert text.endswith("run: pip list --format=freeze > keep.txt && pip install -c keep.txt 'no-such-thing>=1'")
    assert named(told["mend"], "numpy>=999 (").endswith("run: pip install 'numpy>=999'")
    kernel = named(told["mend"], "ipython>=999 (")
    assert "leave it" in kernel and "pip install" not in kernel, "no kernel would start again"
    assert named(told["ok"], "requirements met").startswith("requirements met: torch ")


def test_a_loaded_version_that_is_not_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(__version__="1.0.0"))  # type: ignore[arg-type]
    told = list(doctor._versions())
    assert told[0].state == "mend" and "numpy 1.0.0 (installed: " in told[0].text


def test_what_is_optional_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-thing": "cluster"})
    assert named(found()["note"], "no-such-thing").endswith("pip install no-such-thing")


def test_a_damaged_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("good", "x"), ("bad", "y")):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "file").write_text(content)
        digest = doctor.hashlib.sha256(b"x").hexdigest()
        (folder / "SHA256.json").write_text(f'{{"file": "{digest}"}}')
    monkeypatch.setattr(doctor, "DATA", tmp_path)
    told = found()
    assert named(told["mend"], "bad: file missing or damaged; run: git checkout") and named(told["ok"], "good: ")
    assert named(told["mend"], "embedded tasks: none; run: ")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert named(found(tmp_path / "file" / "runs")["mend"], "is a file, where")

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    assert "cannot be written (Permission denied); say another folder: --out" in named(
        found(tmp_path)["mend"], "cannot"
    )


def test_no_kernel_is_mended_by_ipykernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda _: {"julia": ""})
    told = named(found(tmp_path)["mend"], "no kernel named python3")
    assert told.endswith("-m ipykernel install --sys-prefix --name python3")


def test_what_breaks_while_it_is_looked_at_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[doctor.Line]:
        raise RuntimeError("all wrong\nin detail")

    monkeypatch.setattr(doctor, "_memory", broken)
    told = found(tmp_path)
    assert named(told["mend"], "memory: could not be looked at (all wrong)") and named(told["ok"], "kernel python3")


class _Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_access_is_asked_for_only_online(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", there)
        assert list(doctor.hub_asked(True)) == [doctor.Line("ok", f"{there} can be reached")]
        assert list(doctor.hub_asked(False)) == []
        server.shutdown()
    [gone] = doctor.hub_asked(True)
    assert gone.state == "mend" and gone.text.endswith("export HF_HUB_OFFLINE=1")


def test_a_gpu_without_bfloat16_is_a_note() -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        device=lambda _: _Nothing(),
        mem_get_info=lambda: (15 * 10**9, 16 * 10**9),
        is_bf16_supported=lambda including_emulation: False,
        get_device_name=lambda _: "Tesla T4",
    )
    torch = ModuleType("torch")
    torch.cuda = cuda  # type: ignore[attr-defined]
    [line] = doctor._devices(torch)
    assert line == doctor.Line("note", "cuda:0 Tesla T4, 15.0 GB of 16.0 GB free, no bfloat16: take dtype float16")


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
