"""Run one notebook through papermill: a script of its own, started by its path, so that nothing heavy is imported.

What to run, and where the executed notebook goes, comes as JSON on standard input. This process ends when
its parent does, and takes the kernel along. A kernel whose papermill was killed is killed too on Linux, by the system;
elsewhere it notices within a second.
"""

import json
import os
import sys
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


def main() -> int:
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


if __name__ == "__main__":
    sys.exit(main())
