"""Call functions one after the other: a script of its own, started by its path by `functions.py`.

Each comes as a line of JSON on standard input, and a line of JSON says how it ended: its error and where that was, two
empty texts if there was none. Whatever is printed goes to standard error. The process ends when its parent does.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback

from amp_tutorial.runs.notebook_process import end_with
from amp_tutorial.runs.this_machine import reset_peak


def called(function: str, folder: str, parameters: dict) -> tuple[str, str]:
    """The error of a call, and where it was."""
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


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_with(int(sys.argv[1]))
    for line in sys.stdin:
        answers.write(json.dumps(called(**json.loads(line))) + "\n")
        answers.flush()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
