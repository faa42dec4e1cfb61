"""The command line: `amp-tutorial run`, `sweep`, `table`, `gather`, `fetch`, `grade` and `doctor`.

Bad input is one sentence, and exit status 2.
"""

import argparse
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from .files import OWN
from .files.atomic import reason

COMMANDS = {
    "run": ("one run of a notebook", "amp_tutorial.runs.single_run", "--preset ci -p seed=1 --dry-run"),
    "sweep": ("every run of a grid, on this machine or a cluster", "amp_tutorial.runs.sweep", "GRID.yaml --dry-run"),
    "table": ("published numbers beside those of your runs", "amp_tutorial.reports.table", "--runs out/runs"),
    "gather": ("the records of many runs as one table", "amp_tutorial.reports.gather", "out/runs --out out/table"),
    "fetch": ("a real model, by its name", "amp_tutorial.runs.fetch", "smollm2-135m --dry-run"),
    "grade": ("what students handed in", "amp_tutorial.course.grading", "submitted --execute"),
    "doctor": ("what this machine can do, and what to mend", "amp_tutorial.runs.doctor", "--online"),
}


class _Parser(argparse.ArgumentParser):
    """One sentence for a mistake; --help shows the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 if runs failed, 2 for bad input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # retries without a network, line by line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal that has no →, the words are worth more
            stream.reconfigure(errors="replace")
    asked = list(sys.argv[1:] if arguments is None else arguments)
    early = _Parser(prog="amp-tutorial", add_help=False, allow_abbrev=False)  # before any module reads the table
    early.add_argument("--families")
    said, asked = early.parse_known_args(asked)
    if said.families is not None:
        os.environ[OWN] = os.path.abspath(said.families)
    try:
        return _command(asked)
    except ValueError as error:
        print(f"amp-tutorial {' '.join(asked[:1])}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        if not str(error).startswith("amp_tutorial needs"):
            raise
        print(f"amp-tutorial {' '.join(asked[:1])}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python's own flush at the end has where to go
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"amp-tutorial {' '.join(asked[:1])}: {reason(error)}{where}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. What is finished is kept; the same command goes on.", file=sys.stderr)
        return 130


def _command(asked: list[str]) -> int:
    parser = _Parser(prog="amp-tutorial", description="Reproducible runs of the course's notebooks.")
    parser.add_argument("--version", action="version", version=f"amp-tutorial {version('amp-tutorial')}")
    about = "rows of your own for the table of model families, as data/families.yaml has them; with any command"
    parser.add_argument("--families", metavar="FILE.yaml", help=about)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules: dict[str, Any] = {}
    for name, (about, module, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
        if name in asked[:1]:  # the others' modules are not needed, so a fault in one stops no other
            modules[name] = importlib.import_module(module)
            modules[name].add_arguments(sub)
            sub.formatter_class = argparse.RawDescriptionHelpFormatter
            listed = getattr(modules[name], "listed", None)
            sub.epilog = f"example: amp-tutorial {name} {example}" + (f"\n\n{listed(asked)}" if listed else "")
    options = parser.parse_args(asked)
    return int(modules[options.command].command(options))


if __name__ == "__main__":
    sys.exit(main())
