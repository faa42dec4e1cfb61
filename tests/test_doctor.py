"""The doctor: one line each, a mend that names its command, and no torch needed to speak."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from amp_tutorial.files import ROOT
from amp_tutorial.runs import doctor, this_machine

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
