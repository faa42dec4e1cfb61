"""Run pytest in copies of the repository, each in a fork of this process, which has loaded the libraries once.

Reads one line of JSON for each run, [folder, test, test, …], and answers with one, [exit status, what pytest said].
"""

import json
import os
import subprocess
import sys
import tempfile

# What most of the time goes into; nothing of the package, since each copy has its own.
import accelerate  # noqa: F401
import hypothesis.strategies  # noqa: F401
import nbformat  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and to load them takes as long as a test
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def run(folder: str, tests: list[str]) -> tuple[int, str]:
    """Exit status and output of pytest on these tests in a folder; it stops at the first that fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        if sys.platform != "linux":  # elsewhere a fork of a process with such libraries may not work
            command = [sys.executable, "-m", "pytest", *OPTIONS, *tests]
            environment = os.environ | {"PYTHONPATH": folder}
            status = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log).returncode
        elif child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                os.chdir(folder)
                os.environ["PYTHONPATH"] = folder
                sys.path.insert(0, folder)
                status = int(pytest.main([*OPTIONS, *tests]))
            except BaseException:
                status = -1
            sys.stdout.flush()
            os._exit(status)
        log.seek(0)
        return status, log.read()


if __name__ == "__main__":
    for line in sys.stdin:
        folder, *tests = json.loads(line)
        print(json.dumps(run(folder, tests)), flush=True)
