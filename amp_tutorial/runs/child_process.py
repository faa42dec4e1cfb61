"""One notebook through papermill, or functions one after the other: a script of its own, started by its path, so that
nothing heavy is imported.

Of a notebook, what to run and where the executed one goes comes as JSON on standard input. With "functions" and the
number of the parent as arguments each call comes as a line of JSON, and a line of JSON says how it ended: its error and
where that was, two empty texts if there was none; whatever is printed goes to standard error.

This process ends when its parent does, and takes the kernel along. A kernel whose papermill was killed is killed too on
Linux, by the system; elsewhere it notices within a second.
"""

import importlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # see `runs/__init__.py`; nobody here needs it
DEAD = 3  # exit status: the kernel died
NOTEBOOK = "notebook.ipynb"
# PR_SET_PDEATHSIG, SIGKILL. ipykernel watches for a new parent as well, but before version 7 only for process 1.
DIE_WITH_PARENT = "assert __import__('ctypes').CDLL(None).prctl(1, 9) == 0"


def end_with(parent: int) -> None:
    """End this process and all those below it, whatever they do, once its parent is gone."""

    import psutil

    def lives() -> bool:
        """On Windows the number of a parent that is gone stays."""
        return os.getppid() == parent and (sys.platform != "win32" or psutil.pid_exists(parent))

    def watch() -> None:
        while lives():
            time.sleep(0.2)
        try:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        finally:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_notebook() -> int:
    asked = json.load(sys.stdin)
    end_with(asked["parent"])
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, target = (
        asked[name].replace("{", "{{").replace("}", "}}")  # papermill formats paths
        for name in ("notebook", "output")
    )
    try:
        papermill.execute_notebook(
            source,
            target,
            asked["parameters"],
            kernel_name="python3",
            progress_bar=asked["progress"],
            start_timeout=300,  # seconds; many kernels may start at once on a slow disk
            coalesce_streams=True,  # else a print in pieces is stored in as many as happened to arrive
            extra_arguments=[f"--IPKernelApp.exec_lines={DIE_WITH_PARENT}"] if sys.platform == "linux" else [],
        )
    except DeadKernelError:
        return DEAD
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}", flush=True)
        return 1
    return 0


def called(function: str, folder: str, parameters: dict) -> tuple[str, str]:
    """The error of a call, and where it was."""
    from amp_tutorial.runs.this_machine import reset_peak

    module, _, name = function.partition(":")
    os.chdir(folder)
    reset_peak()  # a record's peak is that of its own run
    try:
        getattr(importlib.import_module(module), name)(**parameters)
        return "", ""
    except BaseException as error:  # SystemExit too: the next function is to run all the same
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.name != "called"]
        at = f"{os.path.basename(own[-1].filename)}, line {own[-1].lineno}: {own[-1].line}" if own else ""
        said = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {said[0]}", at
    finally:
        os.chdir(tempfile.gettempdir())  # the folder is going to be moved


def call_functions(parent: int) -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_with(parent)
    for line in sys.stdin:
        answers.write(json.dumps(called(**json.loads(line))) + "\n")
        answers.flush()
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(call_functions(int(sys.argv[2])) if sys.argv[1:2] == ["functions"] else run_notebook())
