"""`amp-tutorial run`: one run of a notebook, into the same folders as a sweep's."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files.atomic import expanded
from . import execute, fetch
from . import record as records
from .parameters import Parameter, effective, names, notebook_named, parameters_of, parsed

SHOWN = ("parameters removed", "perplexity", "mean accuracy")  # the metrics, or their last words, looked at first
FEW = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help=f"a parameter file: {', '.join(names())}")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a value of one")
    parser.add_argument("--notebook", default="reproduce", help="reproduce, the name of a lesson, or a file")
    parser.add_argument("--out", default="out/runs", help="the folder of runs; default out/runs")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="a run that takes longer has failed")
    parser.add_argument("--dry-run", action="store_true", help="say what it would run and need, and write nothing")
    parser.add_argument("--prefetch", action="store_true", help="fetch model, texts and tasks' data; run nothing")
    parser.add_argument("--again", action="store_true", help="run it even if it is finished; the earlier one is kept")


def given_by(options: argparse.Namespace, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """What the command line says of parameters.

    Raises:
        ValueError: one is said twice, or another option says it.
    """
    pairs = [parsed(known, text) for text in options.parameter]
    for i, (name, _) in enumerate(pairs):
        if name in dict(pairs[:i]):
            raise ValueError(f"-p {name} is given twice.")
        if name == "out":
            raise ValueError("-p out is not to be given; each run has a folder of its own in --out.")
        if name == "preset" and (options.preset is not None or dict(pairs)[name] in names()):
            raise ValueError("-p preset is only a note for the record; name a parameter file with --preset.")
    return dict(pairs)


def listed(asked: Sequence[str]) -> str:
    """For --help: the parameters of the notebook that is asked for, with their defaults."""
    name = asked[asked.index("--notebook") + 1] if "--notebook" in asked[:-1] else "reproduce"
    try:
        known = parameters_of(notebook_named(name))
    except ValueError as error:
        return str(error)
    lines = [f"  {p.name}={json.dumps(p.default, ensure_ascii=False)}  {p.help}".rstrip() for p in known.values()]
    return "\n".join([f"parameters of {name}, and their defaults:", *lines])


def command(options: argparse.Namespace) -> int:
    """0 if the run is finished, 1 if it failed.

    Raises:
        ValueError: what was asked can't be done; nothing was run.
    """
    notebook = notebook_named(options.notebook)
    known = parameters_of(notebook)
    parameters = effective(known, options.preset, given_by(options, known), "-p")
    if options.limit is not None and not 0 < options.limit < float("inf"):
        raise ValueError(f"--limit {options.limit:g} must be more than 0 seconds, and not endless.")
    execute.could_write(options.out)
    options.out = expanded(options.out)
    run = execute.job(notebook, parameters)
    execute.refuse(run)
    there = execute.finished(options.out, run.id) is not None
    if options.dry_run:
        print(f"Run {run.id} of {notebook.stem}{', finished before' if there else ''}:")
        print("\n".join(f"  {name}={value!r}" for name, value in parameters.items() if name != "out"))
        if "over_budget" in parameters:
            print(needed(run.parameters))
        return 0
    if options.prefetch:
        print("\n".join(fetch.all_of(run.parameters)))
        return 0
    if "device" in parameters:  # lessons say by themselves what they do without a model or a text
        from .parameter_values import to_be_had
        from .requirements import has

        to_be_had(run.parameters)
        has(run.parameters)  # refuses one that is not here
    out = execute.writable(options.out)
    execute.clean(out)
    print(f"Run {run.id} of {notebook.stem}.", flush=True)
    terminal = sys.stderr.isatty()
    lines = None if terminal else Lines(run.parameters)
    outcome = execute.execute(run, out, options.limit, None, terminal, options.again, lines)
    if outcome.status == "busy":
        print(f"Another process is at run {run.id} in {out}; wait for it.", file=sys.stderr)
        return 1
    if outcome.status == "failed":
        where = f" in cell {outcome.cell}" if outcome.cell else ""
        kept = f" Its notebook, with the failure on top, is in {outcome.folder}." if outcome.folder else ""
        print(f"Failed{where}: {outcome.error.rstrip('.')}.{kept}", file=sys.stderr)
        return 1
    if outcome.status == "finished":
        print("It was finished before; --again runs it once more.")
        if run.parameters.get("keep_model") and not (Path(outcome.folder) / "model").is_dir():
            print("Its model was not kept then: say --again to make and keep it.", file=sys.stderr)
            return 1
    print(summary(records.read(Path(outcome.folder) / execute.RECORD)))
    print(f"Record and notebook: {outcome.folder}")
    return 0


class Lines:
    """Where there is no terminal: a line when a stage is over, with the time left.

    That is measured: what is left of the operations, at the speed of the stages that are over.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.work: dict[str, float] = {}
        if "over_budget" in parameters:
            from .requirements import needs_of

            with suppress(ValueError):  # the run itself will say why
                self.work = dict(needs_of(parameters, speed=1.0).work)  # only how the stages compare
        self.done, self.seconds = 0.0, 0.0

    def __call__(self, name: str, seconds: float) -> None:
        left = ""
        if name in self.work:
            self.done, self.seconds = self.done + self.work.pop(name), self.seconds + seconds
            if self.done and (rest := sum(self.work.values())):
                from .requirements import duration

                left = f", roughly {duration(rest / self.done * self.seconds)} left"
        print(f"{name}: {seconds:.0f} s{left}", file=sys.stderr, flush=True)


def needed(parameters: Mapping[str, Any]) -> str:
    """What a run of the reproduction notebook needs, from configurations alone."""
    from .requirements import needs_of

    return str(needs_of(parameters))


def summary(record: Mapping[str, Any]) -> str:
    """The numbers that one looks at first, a line each."""
    metrics = {name: m for name, m in record["metrics"].items() if m["value"] is not None}
    first = {name: m for name, m in metrics.items() if name.rpartition("/")[2] in SHOWN}
    result = record.get("signature") or {}  # of a lesson, which says what its bounds are where they are no interval
    bounds = {result["name"]: result["spread"]} if "spread" in result else {}
    lines = [f"{record['status']} in {record.get('seconds', 0):.0f} s"]
    for name, m in list((first or metrics).items())[:FEW]:
        low, high = m.get("low"), m.get("high")
        spread = (
            "" if low is None or high is None else f"  ({bounds.get(name, '95 % interval')} {low:.4g} to {high:.4g})"
        )
        lines.append(f"  {name:24s} {m['value']:.4g} {m.get('unit', '')}".rstrip() + spread)
    return "\n".join(lines)
