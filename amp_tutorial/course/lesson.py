"""What every lesson uses: one start, figures with alt text, self-checks, the signature result and the record.

In a lesson: `L = lesson.start("01_anatomy", dict(model=model, seed=seed, out=out))`, then `L.show`, `L.check`,
`L.assert_close`, `L.signature`, and `L.finish()` in the last cell.
"""

import ast
import functools
import io
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
import transformers
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor

import amp_tutorial as amp

from ..core.checkpoint import configuration
from ..files import DATA, STATIC, record_path
from ..files.texts import text_source, texts
from ..measure.tasks import load_tasks, task_names
from ..reports.style import HATCHES, MARKERS, PALETTE, bundle, colour, numbers  # noqa: F401, lessons take them from here
from ..runs import collection
from ..runs.parameter_values import OF_LESSONS, refuse
from ..runs.parameters import KINDS, meant, preset
from ..runs.record import Record
from . import exercises
from .drawings import DRAWINGS

BUILT = DATA / "real"  # the records of lessons on a model that is not embedded, from when the course was built
INJECTED = "# Parameters\n"  # how papermill begins the cell with what it was given
MOST_THREADS = 4  # the embedded models are so small that more threads only wait for each other

Number = float | int


@dataclass
class Lesson:
    """A lesson under way: its parameters, its source of chance and its record."""

    name: str
    parameters: dict[str, Any]
    seed: int
    rng: np.random.Generator
    record: Record
    record_path: Path
    size: str = "smallest"  # the preset; of a model that isn't tiny "real", as long as the preset is the smallest
    computes: bool = True  # False: what was found when the course was built is shown
    steps: dict[str, Any] = field(default_factory=dict)  # what was found, by name
    predicted: dict[str, Any] = field(default_factory=dict)  # what the reader said, by question
    near: dict[str, bool] = field(default_factory=dict)  # whether that was so

    def show(self, fig: Figure, alt: str) -> None:
        """Display the figure as a PNG that carries its alt text, and close it.

        Args:
            alt: what a reader who cannot see the figure should know: what is drawn, and what it shows.

        Raises:
            ValueError: no alt text.
        """
        if not alt.strip():
            raise ValueError("A figure needs alt text: say in a sentence what is drawn and what it shows.")
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
        table = numbers(fig)
        plt.close(fig)
        self.picture(png.getvalue(), alt, table)

    def picture(self, png: bytes, alt: str, table: str = "") -> None:
        """Display a PNG with its alt text, and under it, folded, the numbers that it draws."""
        display(bundle(png, alt, table), metadata={"image/png": {"alt": alt}}, raw=True)

    def drawing(self, name: str) -> None:
        """Display one of the course's drawings; see `course.drawings`."""
        drawn = DRAWINGS[name]()
        data = {"text/html": drawn.html(), "image/svg+xml": drawn.svg(), "text/plain": drawn.alt}
        display(data, metadata={"image/svg+xml": {"alt": drawn.alt}}, raw=True)

    def from_sweep(self, folder: str) -> None:
        """Draw accuracy and perplexity against what was removed, from a sweep's records; "": those in `data/sweep`.

        Raises:
            ValueError: no such folder, or records that must not be averaged.
        """
        from ..reports import groups, plots

        found = groups.grouped(groups.scan(folder or DATA / "sweep"))
        print(
            f"{sum(len(group.runs) for group in found)} records in {len(found)} rows that differ in more than the seed."
        )
        for png, alt in plots.drawn(found).values():
            self.picture(png, alt)

    def material(self, text: str, tasks: str = "tiny", folder: str = "") -> tuple[str, list[str]]:
        """The text to read and the tasks to ask, before any model is loaded; `size` is set by the model, too.

        Args:
            text: as `files.texts.texts` takes it. Empty: the tiny world for a model of its few words, C4 for any other.
            tasks: as `amp.accuracy` takes them. Empty: the tiny world's, or those of AMP's paper.
            folder: of tasks of your own.

        Raises:
            ValueError: a text or a task that is not to be had.
        """
        real = configuration(self.parameters["model"]).vocab_size > configuration("tiny-llama").vocab_size
        others = OF_LESSONS if real else dict(text="tinyworld", tasks="tiny")
        text, tasks = text or others["text"], tasks or others["tasks"]
        for split in ("calibration", "validation"):
            texts(text, split)
        if real:
            self.size = "real" if self.size == "smallest" else self.size
            print(f"A model of more words than the tiny world's reads {text}, in the sizes called {self.size!r}.")
        if tasks != "tiny":
            load_tasks(tasks, folder)
        self.record.notes |= {"text": text, "tasks": task_names(tasks), "size": self.size}
        return text, task_names(tasks)

    def at_hand(self, model: str, sources: Mapping[str, str], local_copies: str = "") -> bool:
        """Whether a model and its texts are on this machine or can be fetched; if not, say what is missing.

        Then `step` gives what was found when the course was built.

        Args:
            sources: of "calibration" and "validation" the text, see `files.texts.texts`.

        Raises:
            ValueError: something is missing, and nothing was stored of this model.
        """
        missing = ""
        try:
            configuration(model)
            for split, source in sources.items():
                texts(text_source(source, local_copies), split)
        except ValueError as error:
            missing = str(error)
        self.computes = not missing
        if missing:
            built = collection.find(BUILT, f"{self.name}.json")
            if built is None or built["parameters"]["model"] != model:
                raise ValueError(f"{missing} Nothing was stored of {model} to be shown instead.")
            self.steps = built["notes"]["steps"]
            day, threads, seconds = built["started"][:10], built["threads"], built["seconds"]
            print(
                f"{missing}\nWhat follows was found by these cells on {day}, in {seconds:.0f} s on {threads} threads."
            )
        return self.computes

    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """What a function finds, as JSON would have it; where nothing can be computed, what was found before."""
        if self.computes:
            self.steps[name] = json.loads(json.dumps(function()))
        return self.steps[name]

    def lessons_on_a_real_model(self) -> None:
        """What the tiny models said and what the real one says, lesson by lesson, from the records of both."""
        from ..reports import real, real_lessons

        print(f"With {100 * real.RATIO:g} % of all parameters gone; tiny is {real.TINY}, real is SmolLM2-135M.\n")
        for number, title, tiny, found in real_lessons.lessons():
            print(f"{number} · {title}\n  tiny: {tiny}\n  real: {found}\n")

    def check(self, attempt: Any, name: str) -> Any:
        """Check an attempt at an exercise, say in one line what was found, and return what the lesson goes on with.

        Returns:
            The attempt if it is right, otherwise the reference; in an exercise that asks for a value (one case, with
            no arguments), the reference's value. An attempt can't stop the lesson.
        """
        exercise = exercises.named(name)
        verdict = exercises.judge(attempt, exercise)
        self.record.notes.setdefault("exercises", {})[name] = verdict.kind
        if verdict.kind == "right":
            print(f"✔ {name}: right.")
            return attempt
        print(f"✎ {name}: {verdict.sentence} The lesson goes on with the reference.")
        return exercise.reference() if exercise.asks_for_a_value else exercise.reference

    def points(self, name: str) -> int:
        """1 if the last attempt at an exercise was right, otherwise 0: what graders such as nbgrader count."""
        return int(self.record.notes.get("exercises", {}).get(name) == "right")

    def predict(self, question: str, answer: Any = None, among: Sequence[Any] = ()) -> None:
        """Keep what the reader expects, until `seen` puts it beside what was measured; without an answer it goes on.

        Args:
            answer: a number, or one of `among` where there is a choice. What is neither is said, and not kept.
        """
        self.predicted.pop(question, None)
        self.near.pop(question, None)
        choice = f"one of {', '.join(map(repr, among))}" if among else "a number"
        if answer is None:
            print(f"✎ {question[0].upper()}{question[1:]}: put {choice} in place of None, and run on.")
        elif (answer not in among) if among else (isinstance(answer, bool) or not isinstance(answer, Number)):
            print(f"✎ {question[0].upper()}{question[1:]}: {answer!r} is not {choice}.")
        else:
            self.predicted[question] = answer
            print(f"Noted: {answer}.")

    def seen(self, question: str, found: Any, within: Number = 0, unit: str = "") -> None:
        """Put what was found beside what the reader expected, and count how often that was near.

        Args:
            within: how far off a number may be to count as near.
        """
        words = quantity(found, unit) if isinstance(found, Number) and not isinstance(found, bool) else str(found)
        if (said := self.predicted.get(question)) is None:
            print(f"{question[0].upper()}{question[1:]}: {words}. You made no prediction.")
            return
        numbers = isinstance(said, Number) and isinstance(found, Number)
        self.near[question] = bool(abs(said - found) <= within) if numbers else said == found
        told = "that is near" if numbers and said != found else "right"
        print(f"{question[0].upper()}{question[1:]}: {words}. You said {said}: ", end="")
        print(f"{told}." if self.near[question] else "think about what made the difference.")

    def signature(
        self,
        name: str,
        value: Number,
        low: Number,
        high: Number,
        unit: str,
        baseline: tuple[str, Number],
        control: tuple[str, Number],
        spread: str = "95 % interval",
        must: str = "that must fail",
    ) -> None:
        """Print the lesson's one result beside a weaker baseline and a control that must fail; put it in the record.

        Args:
            low, high: what `spread` calls it; a record says it where it is no interval.
            must: what is asked of the control.

        Raises:
            ValueError: the value lies outside its own interval.
        """
        if not low <= value <= high:
            raise ValueError(f"The interval from {low} to {high} does not hold the value {value}.")
        if abs(value) < 1e-9 * max(abs(low), abs(high)):
            value = 0.0  # what rounding leaves of a difference of nothing
        self.record.metric(name, float(value), low=float(low), high=float(high), unit=unit)
        self.record.signature = {
            "name": name,
            "value": float(value),
            "low": float(low),
            "high": float(high),
            "unit": unit,
            "baseline": {"name": baseline[0], "value": float(baseline[1])},
            "control": {"name": control[0], "value": float(control[1])},
        }
        if spread != "95 % interval":
            self.record.signature["spread"] = spread
        print(
            f"{name}: {quantity(value, unit)} ({spread} {quantity(low, unit)} to {quantity(high, unit)}).\n"
            f"Baseline, {baseline[0]}: {quantity(baseline[1], unit)}.\n"
            f"Control {must}, {control[0]}: {quantity(control[1], unit)}."
        )

    def conclude(self, claims: Mapping[str, bool]) -> None:
        """Say what to take home, sentence by sentence; of one that this run does not bear out, that it does not.

        Args:
            claims: sentences, with numbers of the run, and whether they hold. All do in the committed lessons.
        """
        noted = self.record.notes.setdefault("conclusions", {})  # a lesson may conclude more than once
        noted |= {sentence: bool(holds) for sentence, holds in claims.items()}
        for sentence, holds in claims.items():
            print(f"• {sentence}" if holds else f"• Otherwise in this run, so think again: not “{sentence}”")

    def assert_close(self, a: Any, b: Any, tol: float, what: str) -> None:
        """Print "✔ what" if no pair of elements differs by more than `tol`.

        Raises:
            AssertionError: they do, or the shapes differ, or something is not finite.
        """
        x, y = (torch.as_tensor(v).detach().cpu().double() for v in (a, b))
        if x.shape != y.shape:
            raise AssertionError(f"Not so: {what}. The shapes are {tuple(x.shape)} and {tuple(y.shape)}.")
        worst = (x - y).abs().max().item() if x.numel() else 0.0
        if not worst <= tol:  # so that NaN fails too
            raise AssertionError(f"Not so: {what}. The largest difference is {worst:.3g}, more than {tol:g}.")
        print(f"✔ {what}")

    def finish(self) -> None:
        """Write the record, with what `step` found; that of a lesson that never gets here says so.

        A lesson of which the real model has something to say ends with that, from the records.
        """
        from ..reports import real, real_lessons

        if said := real_lessons.closing(self.name.partition("_")[0]):
            print(f"On a real model, {100 * real.RATIO:g} % of all parameters gone: {said}")
        if self.near:
            print(f"Your predictions: {sum(self.near.values())} of {len(self.near)} right or near.")
        if self.steps and self.computes:
            self.record.notes["steps"] = self.steps
        self.record.write(self.record_path, status="ok")
        print(f"Lesson {self.name} is done.")


class Bench:
    """A dense model, draws of text to make it smaller by, and the text and tasks that judge what comes out."""

    def __init__(
        self,
        L: Lesson,
        source: str,
        drawn: int,
        judged: int,
        letters: int | None = None,
        tasks: Sequence[str] = (),
        items: int = 40,
        folder: str = "",
    ) -> None:
        """
        Args:
            source: of the text, as `Lesson.material` gives it.
            drawn: texts of a draw, and as many that stay apart: no score and no fit sees them.
            judged: held-out texts on which perplexity is measured.
            letters: of each text; None for all.
            tasks, items, folder: what is asked, how often each, and the folder of tasks of your own.
        """
        self.dense, self.tokenizer = amp.load(L.parameters["model"])
        documents = [text[:letters] for text in texts(source)]
        documents = [documents[i] for i in L.rng.permutation(len(documents))]
        self.judged = [text[:letters] for text in texts(source, "validation")[:judged]]
        self.apart, self.documents, self.many = documents[:drawn], documents[drawn:], drawn
        self.tasks, self.items, self.folder = tasks, items, folder

    def drawn(self, seed: int) -> list[str]:
        """The calibration texts of a seed."""
        return [self.documents[(seed * self.many + k) % len(self.documents)] for k in range(self.many)]

    def batches(self, found: list[str]) -> list[Any]:
        """Texts as batches, a text a row."""
        return list(amp.calibration(self.tokenizer, found, samples=len(found), batch_size=16, join=None))

    def read(self, model: Any, found: list[str] | None = None) -> amp.Perplexity:
        """Perplexity on the held-out texts, or on others."""
        return amp.perplexity(model, self.tokenizer, self.judged if found is None else found)

    def asked(self, model: Any) -> Any:
        """The mean accuracy on the tasks."""
        return amp.accuracy(model, self.tokenizer, self.tasks, limit=self.items, folder=self.folder).mean


def start(name: str, parameters: Mapping[str, Any]) -> Lesson:
    """Begin a lesson: seeds, threads, plot style, quiet libraries, and its record in `<out>/records`.

    Args:
        name: the notebook's name without ending, "01_anatomy".
        parameters: the values of the parameters cell; `model`, `seed` and `out` are read here.

    Raises:
        ValueError: a value that no lesson can have, or one that papermill was given for a parameter that there is not.
    """
    settings = dict(parameters)
    given(name, settings)
    refuse(name, settings)
    seed = int(settings.get("seed", 0))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(MOST_THREADS, os.cpu_count() or 1)))
    sns.set_theme(style="whitegrid", palette=PALETTE, rc={"figure.figsize": (7, 4), "axes.titlesize": "medium"})
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # lm-eval reads each task file once, with a bar
    path = record_path(settings.get("out", "out"), name, settings.get("model", "none"))
    size = settings.get("preset", "smallest")
    lesson = Lesson(name, settings, seed, np.random.default_rng(seed), Record(name, settings), path, size)
    lesson.record.write(path, status="running")
    return lesson


def given(name: str, settings: Mapping[str, Any]) -> None:
    """Look at what papermill gave a notebook: known names, values of the right types, a preset that there is.

    Raises:
        ValueError: one that is not.
    """
    no_strays(settings, cells_so_far())
    right_kinds(settings, annotations())
    if name == "reproduce" and settings.get("preset"):
        preset(settings["preset"])  # its values papermill does not fill in, and its name it does not know


def cells_so_far() -> list[str]:
    """The sources of the cells that this kernel has run; outside a kernel none."""
    from IPython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call]
    return [] if shell is None else list(shell.user_ns.get("In", ()))


def annotations() -> dict[str, Any]:
    """What the kernel's parameters cell says of its names' types; outside a kernel nothing."""
    from IPython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call]
    return {} if shell is None else dict(shell.user_ns.get("__annotations__", {}))


def right_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse a value of another type than its parameter has: papermill takes any, and what it can't read is a text.

    Raises:
        ValueError: the first such value, and what is wanted.
    """
    for name, value in values.items():
        kind = kinds.get(name)
        if kind in KINDS and not (type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(f"{name}={value!r} must be {KINDS[kind]}.")


def no_strays(known: Mapping[str, Any], cells: Sequence[str]) -> None:
    """Refuse what papermill injected for a parameter that there is not: papermill itself runs on with the defaults.

    Raises:
        ValueError: the name, and the one that may have been meant.
    """
    for cell in cells:
        if cell.startswith(INJECTED):
            for statement in ast.parse(cell).body:
                for target in statement.targets if isinstance(statement, ast.Assign) else ():
                    if isinstance(target, ast.Name) and target.id not in known:
                        said = f"No parameter is called {target.id!r}.{meant(target.id, known)}"
                        raise ValueError(f"{said} Known: {', '.join(known)}.")


def widget(function: Callable[..., Any], **sliders: Any) -> None:
    """Draw once at the function's own defaults; in front of a reader, offer controls under it, as `interact` does.

    The first drawing is what remains on GitHub, in HTML and in print, so every control's parameter needs a default.
    """
    function()
    if not watched():
        return
    from ipywidgets import HTML, VBox, interactive

    state = HTML("ready")

    @functools.wraps(function)  # so that the controls begin at its defaults
    def answer(**values: Any) -> None:
        state.value = "working …"
        try:
            function(**values)
        finally:
            state.value = "ready"

    controls = interactive(answer, **sliders)
    for control in controls.children[:-1]:  # the last one holds what is printed and drawn
        control.description = control.description.replace("_", " ")
        control.style.description_width = "initial"
        if control.has_trait("continuous_update"):
            control.continuous_update = False  # only where it comes to rest: an answer may take a moment
    display(VBox([state, controls]))


def watched() -> bool:
    """Whether a front end that shows widgets runs this kernel; papermill, nbval and nbclient are none."""
    if os.environ.get(STATIC):
        return False
    front_ends = ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD")  # Jupyter servers and VS Code set these for kernels
    return "google.colab" in sys.modules or any(name in os.environ for name in front_ends)


def quantity(value: Number | Tensor, unit: str = "") -> str:
    """A number with its unit, to four significant digits."""
    text = f"{float(value):.4g}"
    return f"{text}{unit if unit in ('%', '×') else ' ' + unit if unit else ''}"
