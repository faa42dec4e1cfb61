"""Set up before any test module is imported: no network, one thread, shape annotations executed, fixed examples."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell's background job ignores Ctrl-C, and what it starts inherits that; the tests of Ctrl-C start processes.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).parents[1]
# Linear algebra in many sizes: what a library does otherwise with two threads shows here.
NUMERICS = {
    "test_budget",
    "test_layers",
    "test_refit",
    "test_reference",
    "test_slicing",
}

executed: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float

# Of the modules that say shapes: a call takes some 0.1 ms more, and elsewhere mypy knows as much.
if not os.environ.get("TESTS_OF_A_FAULT"):  # and to read them all takes longer than such a test
    shaped = [path for path in (ROOT / "amp_tutorial").rglob("*.py") if "from jaxtyping" in path.read_text("utf-8")]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shaped]
    jaxtyping.install_import_hook(modules, "conftest.executed")  # before the first import of the package

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
settings.register_profile(
    "fixed",
    max_examples=50,
    derandomize=True,  # the same examples every time and everywhere
    database=None,
    phases=(Phase.generate,) if os.environ.get("TESTS_OF_A_FAULT") else tuple(Phase),  # enough to see that it fails
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fixed")


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.stem in NUMERICS:
        item.add_marker(pytest.mark.numerics)
