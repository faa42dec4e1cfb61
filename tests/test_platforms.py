"""Colab and Kaggle, rebuilt from what they publish: the first cell adds packages, replaces none, and the lessons run.

The lists are in `platforms.json`, one a machine, "name==version" each. What a machine has of this package's
requirements, and what its kernel stands on, is put into a new environment at those versions; torch is the one of the
environment that runs the tests. On Pythons that are not here the resolver alone is asked.

And JupyterLab and the course's pages in a browser, where there is one: alt text, live figures, axe.

With `make platforms`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import pytest
import torch
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from packaging.utils import canonicalize_name

from amp_tutorial.course import html_pages, site
from amp_tutorial.files import NOTEBOOKS, ROOT, STATIC
from amp_tutorial.runs.this_machine import KERNEL

PLATFORMS = json.loads((Path(__file__).parent / "platforms.json").read_text(encoding="utf-8"))
OPEN = {"nbclient", "mistune", "widgetsnbextension"}  # of Kaggle's list: other packages decide
BROUGHT = {"torch", "setuptools"}  # by the environment of the tests: their builds for CUDA are gigabytes
UV = Path(sys.executable).parent / "uv"  # in place of pip, as it resolves for Pythons that are not here
pytestmark = pytest.mark.platforms

# What `google.colab` asks of its kernel's packages, in few lines: colours and inspector of IPython 7, ipython_genutils.
COLAB = """
from ipykernel import ipkernel, jsonutil, zmqshell
from ipython_genutils import py3compat
from IPython.core import events, interactiveshell, oinspect
from IPython.utils import PyColorize, coloransi

GREEN = coloransi.TermColors.Green

class Shell(zmqshell.ZMQInteractiveShell):
    def init_events(self):
        self.events = events.EventManager(self, events.available_events)
        self.events.register("pre_execute", self._clear_warning_registry)

    def init_inspector(self):
        colours = (oinspect.InspectColors, PyColorize.ANSICodeColors, "NoColor")
        self.inspector = oinspect.Inspector(*colours, self.object_info_string_level)

class Kernel(ipkernel.IPythonKernel):
    def _shell_class_default(self):
        return Shell

interactiveshell.InteractiveShellABC.register(Shell)
"""


def versions(lines: list[str]) -> dict[str, str]:
    found = (line.split("==") for line in lines if "==" in line and " " not in line)
    return {canonicalize_name(name): version.partition("+")[0] for name, version in found}


def uv(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run([UV, "-q", *map(str, arguments)], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def installed(machine: Path) -> dict[str, str]:
    return versions(uv("pip", "list", "--format=freeze", "--python", machine / "bin/python").splitlines())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    return next(folder.glob("*.whl"))


def resolved(name: str, wheel: Path, folder: Path, *asked: str) -> dict[str, str]:
    """What pip would have there after the first cell: everything listed is a constraint."""
    keep, without = folder / "keep.txt", folder / "without.txt"
    keep.write_text("\n".join(PLATFORMS[name]["packages"]), encoding="utf-8")
    without.write_text("torch; sys_platform == 'none'\nsetuptools; sys_platform == 'none'", encoding="utf-8")
    bounds = ["--constraint", str(keep), *(["--override", str(without)] if not asked else [])]
    given = f"amp-tutorial @ {wheel.as_uri()}"
    told = uv("pip", "compile", *asked, *bounds, "--no-annotate", "--no-header", "-", given=given)
    return versions(told.splitlines())


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_resolver_replaces_nothing_there(name: str, wheel: Path, tmp_path: Path) -> None:
    """For the machine's own Python."""
    python = ["--python-version", PLATFORMS[name]["python"], "--python-platform", "x86_64-manylinux_2_28"]
    there, found = versions(PLATFORMS[name]["packages"]), resolved(name, wheel, tmp_path, *python)
    assert {package: found[package] for package in found if found[package] != there.get(package, found[package])} == {}
    added = set(found) - set(there)
    assert {"lm-eval", "jaxtyping", "papermill", "gguf"} <= added
    assert not {canonicalize_name(package) for package in KERNEL} & added, "what the kernel stands on is all there"


def machine(name: str, wheel: Path, folder: Path) -> Path:
    """A virtual environment with what the platform has of all that we need, and of what its kernel needs."""
    there = versions(PLATFORMS[name]["packages"])
    wanted = [package for package in resolved(name, wheel, folder) if package in there]
    wanted += [*KERNEL, "ipython-genutils", "six", "sympy", "networkx", "jinja2"]  # Colab's class, and torch
    at = folder / "machine"
    uv("venv", "--python", sys.executable, "--seed", at)
    bounds: list[str | Path] = ["--constraint", folder / "keep.txt", "--override", folder / "without.txt"]
    uv("pip", "install", "--python", at / "bin/python", *bounds, *wanted)
    own, new = Path(torch.__file__).parents[1], next((at / "lib").glob("python*/site-packages"))
    for path in [own / "torch", own / "torchgen", own / "functorch", *own.glob("torch-*.dist-info")]:
        (new / path.name).symlink_to(path)
    for extra in set(installed(at)) - set(there) - BROUGHT - {"pip"} - OPEN:
        uv("pip", "uninstall", "--python", at / "bin/python", extra)  # such as jedi, which Colab leaves out
    (new / "google/colab").mkdir(parents=True)
    (new / "google/colab/__init__.py").touch()
    (new / "google/colab/_kernel.py").write_text(COLAB, encoding="utf-8")
    return at


def run(notebook: str, at: Path, place: Path) -> nbformat.NotebookNode:
    """Run All in a new kernel of Colab's class, in the folder of the upload."""
    kernels = place / "kernels/colab"
    kernels.mkdir(parents=True, exist_ok=True)
    kernel_class = "--IPKernelApp.kernel_class=google.colab._kernel.Kernel"
    argv = [str(at / "bin/python"), "-c", f"import sys; sys.argv += [{kernel_class!r}]; import google.colab; "]
    argv[-1] += "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    spec = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "Colab", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    manager = KernelManager(
        kernel_name="colab", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(place / "kernels")])
    )
    nb = nbformat.read(ROOT / "notebooks" / notebook, as_version=4)
    client = NotebookClient(nb, km=manager, timeout=900, resources={"metadata": {"path": str(place)}})
    client.execute()
    return nb


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_first_cell_keeps_what_is_there_and_lessons_run_before_and_after_a_restart(
    name: str, wheel: Path, tmp_path: Path
) -> None:
    at = machine(name, wheel, tmp_path)
    upload = tmp_path / "content"
    upload.mkdir()
    shutil.copy(wheel, upload)
    before = installed(at)
    told = run("00_quick_tour.ipynb", at, upload)
    after = installed(at)
    assert {
        package: (before[package], after.get(package)) for package in before if before[package] != after.get(package)
    } == {}
    assert {"amp-tutorial", "lm-eval", "jaxtyping"} <= set(after) - set(before)
    # The others in new kernels, as after a restart.
    for nb in (told, run("03_surgery.ipynb", at, upload), run("B_your_own_model.ipynb", at, upload)):
        outputs = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]
        said = "".join(output.get("text", "") for output in outputs if output.get("name") == "stderr")
        assert "Warning" not in said, said[-2000:]
    command = [at / "bin/amp-tutorial", "run", "--preset", "ci", "--out", "out/runs"]
    done = subprocess.run(list(map(str, command)), cwd=upload, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


# JupyterLab and the pages of the course, in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no browser: install Chromium (Debian: apt install chromium)")
BAD = ("critical", "serious")
# What JupyterLab itself draws around a notebook's cells: their editors, and the panel that holds them.
OF_LAB = ("cm-content", "cm-scroller", "jp-WindowedPanel")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # containers run as root
        yield opened
        opened.close()


def findings(page: Any, context: str | None = None) -> list[str]:
    """What axe calls critical or serious, an element each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, context=context).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found if v["impact"] in BAD for node in v["nodes"]]


@IN_BROWSER
@pytest.mark.parametrize("stem", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_lessons_page_is_for_every_reader(stem: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    html = html_pages.page_of(nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4))
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    page.goto(f"file://{tmp_path}/page.html")
    assert findings(page) == []
    pictures = page.locator("img")
    assert all(pictures.nth(k).get_attribute("alt") for k in range(pictures.count()))
    page.close()


@IN_BROWSER
def test_the_site_is_for_every_reader_on_every_screen(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    assert site.build(tmp_path / "site") == []
    wrong = []
    for path in sorted((tmp_path / "site").rglob("*.html")):
        if "_static" in path.parts:
            continue
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(f"file://{path}")
        wrong += [f"{path.name}: {finding}" for finding in findings(page)]
        wrong += [f"{path.name} asks for {url}" for url in asked if not url.startswith(("file:", "data:"))]
        page.set_viewport_size({"width": 360, "height": 780})
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 360:
            wrong.append(f"{path.name} is {width} points wide on a phone of 360")
        page.close()
    assert wrong == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that serves copies of the lessons with live figures."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for stem in ("00_quick_tour", "03_surgery"):
        shutil.copy(NOTEBOOKS / f"{stem}.ipynb", folder)
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--port={port}"]
    command += [
        "--expose-app-in-browser",
        "--ServerApp.token=",
        "--ServerApp.password=",
        "--ServerApp.open_browser=False",
    ]
    search = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name != STATIC}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=kept | {"PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}/lab"
    try:
        for _ in range(240):
            try:
                urlopen(address).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def opened(browser: Any, lab: str, stem: str) -> Any:
    page = browser.new_page(viewport={"width": 1300, "height": 30000})  # so high that every cell is drawn
    page.goto(f"{lab}/tree/{stem}.ipynb?reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-OutputArea img", timeout=120_000)
    return page


@IN_BROWSER
@pytest.mark.parametrize("stem", ["00_quick_tour", "03_surgery"])
def test_in_jupyterlab_alt_text_reaches_the_reader(stem: str, browser: Any, lab: str) -> None:
    page = opened(browser, lab, stem)
    stored = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4)
    drawn = sum("image/png" in o.get("data", {}) for cell in stored.cells for o in cell.get("outputs", []))
    many = "n => document.querySelectorAll('.jp-OutputArea img').length >= n"  # cells are drawn little by little
    page.wait_for_function(many, arg=drawn, timeout=120_000)
    pictures = page.locator(".jp-OutputArea img")
    alts = [pictures.nth(k).get_attribute("alt") for k in range(pictures.count())]
    assert drawn and all(alts)
    ours = [found for found in findings(page, ".jp-Notebook") if not any(name in found for name in OF_LAB)]
    assert ours == []
    page.close()


@IN_BROWSER
@pytest.mark.parametrize("stem", ["00_quick_tour", "03_surgery"])
def test_a_live_figure_answers_the_keyboard(stem: str, browser: Any, lab: str) -> None:
    """Run All, move the first slider by one step: what stands under it changes, and it says when it is working."""
    page = opened(browser, lab, stem)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    handle = page.wait_for_selector(".jupyter-widgets .noUi-handle", timeout=400_000)
    page.wait_for_function(
        "[...document.querySelectorAll('.jp-InputArea-prompt')].every(e => !e.innerText.includes('*'))", timeout=400_000
    )
    assert handle.get_attribute("role") == "slider" and handle.get_attribute("tabindex") == "0"
    box = page.locator(".jupyter-widgets.widget-box:has(.noUi-handle)").first
    before = box.inner_text()
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([e, was]) => e.innerText !== was && !e.innerText.includes('working')",
        arg=[box.element_handle(), before],
        timeout=60_000,
    )
    page.close()
