"""Checking attempts at exercises, and what a lesson does from its start to its record."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from amp_tutorial.course import exercises, lesson, sources
from amp_tutorial.course.exercises import Exercise, judge, same
from amp_tutorial.course.lesson import Lesson


def columns(weight: Tensor, n: int) -> Tensor:
    """The solution of the exercise below."""
    return weight[:, 2 * n : 2 * n + 2]


def rows(weight: Tensor, n: int) -> Tensor:
    return weight[2 * n : 2 * n + 2]


def first(weight: Tensor, n: int) -> Tensor:
    return weight[:, :2]


SLICE = Exercise(
    columns,
    lambda: [(torch.arange(16.0).view(4, 4), n) for n in (0, 1)],
    {"You sliced rows; heads live in the columns.": rows},
    ["Look at the shape.", "Heads live in the columns."],
)
VALUE = Exercise(lambda: 42, lambda: [()], {"You forgot the biases.": lambda: 40})


def does_nothing(weight: Tensor, n: int) -> Tensor: ...  # type: ignore[empty-body]


def left_for_later(weight: Tensor, n: int) -> Tensor:
    raise NotImplementedError


def stops(weight: Tensor, n: int) -> Tensor:
    return weight[:, 9, 9]


def spoils_its_input(weight: Tensor, n: int) -> Tensor:
    weight += 1
    return columns(weight - 1, n)


@pytest.mark.parametrize(
    ("attempt", "kind", "says"),
    [
        (columns, "right", "right"),
        (spoils_its_input, "right", "right"),
        (does_nothing, "unsolved", "not solved yet"),
        (left_for_later, "unsolved", "not solved yet"),
        (None, "unsolved", "not solved yet"),
        (..., "unsolved", "not solved yet"),
        (rows, "misconception", "You sliced rows"),
        (stops, "raised", "In case 1 of 2 your attempt stopped with IndexError"),
        (lambda: 1, "raised", "TypeError"),
        (first, "different", "In case 2 of 2 the answer is a tensor of shape (4, 2) with [2, 3,"),
        (3, "different", "A function is asked for; yours is 3"),
    ],
)
def test_judging_a_function(attempt: object, kind: str, says: str) -> None:
    verdict = judge(attempt, SLICE)
    assert verdict.kind == kind
    assert says in verdict.sentence


@pytest.mark.parametrize(
    ("attempt", "kind"), [(42, "right"), (42.0, "right"), (40, "misconception"), (7, "different"), (None, "unsolved")]
)
def test_judging_a_value(attempt: object, kind: str) -> None:
    assert judge(attempt, VALUE).kind == kind


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (1.0, 1.0 + 1e-7, True),
        (1.0, 1.01, False),
        (float("nan"), float("nan"), True),
        (torch.ones(2), [1, 1], True),
        ([1, 1], torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.tensor(3), 3, True),
        ([1, (2, 3)], [1, [2, 3]], True),
        ([1, 2], [1, 2, 3], False),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, True),
        ({"a": 1}, {"b": 1}, False),
        ("ab", ["a", "b"], False),
        ("ab", "ab", True),
        (None, 0, False),
        (ValueError("x"), ValueError("y"), True),
        (ValueError("x"), 1, False),
    ],
)
def test_same(a: object, b: object, equal: bool) -> None:
    assert same(a, b) is equal


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lesson]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(exercises, "all_exercises", lambda: {"slice": SLICE, "value": VALUE})
    yield lesson.start("99_test", {"model": "some/model", "seed": 3, "out": str(tmp_path)})
    torch.set_num_threads(threads)


def test_check_goes_on_with_the_reference(begun: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    assert begun.check(columns, "slice") is columns
    assert begun.check(rows, "slice") is columns
    assert begun.check(stops, "slice") is columns
    assert begun.check(None, "slice") is columns
    assert begun.check(None, "value") == 42
    assert begun.check(40, "value") == 42
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✔ slice: right."
    assert len(lines) == 6 and all("goes on with the reference" in line for line in lines[1:])


def test_an_unknown_exercise_is_a_fault_of_the_lesson(begun: Lesson) -> None:
    with pytest.raises(ValueError, match="Unknown exercise 'slices'"):
        begun.check(columns, "slices")


def test_a_record_says_how_far_the_lesson_got(begun: Lesson, tmp_path: Path) -> None:
    path = tmp_path / "records" / "99_test-model.json"
    assert json.loads(path.read_text())["status"] == "running"
    begun.signature("drop", 1.2, 1.1, 1.3, "nats", baseline=("random", 2), control=("reversed", 9))
    begun.finish()
    record = json.loads(path.read_text())
    assert record["status"] == "ok"
    assert record["signature"]["baseline"] == {"name": "random", "value": 2.0}
    assert record["metrics"]["drop"]["high"] == 1.3
    assert record["parameters"]["seed"] == 3


def test_what_rounding_leaves_of_no_difference_is_zero(begun: Lesson) -> None:
    begun.signature("gain", 1.7e-15, -12, 12, "points", baseline=("random", 0), control=("reversed", 0))
    begun.finish()
    assert json.loads(begun.record_path.read_text())["signature"]["value"] == 0.0


def test_a_signature_lies_in_its_interval(begun: Lesson) -> None:
    with pytest.raises(ValueError, match="does not hold the value"):
        begun.signature("drop", 1.4, 1.1, 1.3, "nats", baseline=("random", 2), control=("reversed", 9))


def test_the_same_seed_gives_the_same_chance(tmp_path: Path) -> None:
    draws = []
    for _ in range(2):
        begun = lesson.start("99_test", {"seed": 5, "out": str(tmp_path)})
        draws.append((begun.rng.random(), torch.rand(()).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("# Parameters\nmodle = 'x'\n", "No parameter is called 'modle'. Did you mean model.* Known: model, seed, out"),
        ("# Parameters\nseed = 4\nnothing_like_it = 1\n", "No parameter is called 'nothing_like_it'. Known"),
    ],
)
def test_what_papermill_is_given_for_no_parameter_is_refused(cell: str, words: str) -> None:
    known = dict(model="m", seed=0, out="out")
    with pytest.raises(ValueError, match=words):
        lesson.no_strays(known, ["model = 'm'", cell])
    lesson.no_strays(known, ["modle = 1", "# Parameters\nseed = 3\n"])  # a cell of one's own may name what it likes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(ratio=5.0), "ratio=5.0 must be at least 0 and less than 1"),
        (dict(preset="huge"), "preset='huge' must be one of 'smallest', 'full'"),
        (dict(seed=-1), "seed=-1 must be at least 0"),
        (dict(calibration=10**9), "calibration=1000000000 must be at least 1 and at most 10,000,000"),
    ],
)
def test_a_lesson_begins_with_no_value_that_it_cannot_have(given: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        lesson.start("99_test", dict(model="m", seed=0, out=str(tmp_path)) | given)
    assert list(tmp_path.iterdir()) == []


def test_assert_close(begun: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    begun.assert_close(torch.ones(2), [1.0, 1.0], 1e-6, "ones are ones")
    assert capsys.readouterr().out == "✔ ones are ones\n"
    with pytest.raises(AssertionError, match="Not so: they agree. The largest difference is 0.1"):
        begun.assert_close(1.0, 1.1, 1e-3, "they agree")
    with pytest.raises(AssertionError):
        begun.assert_close(float("nan"), 1.0, 1e-3, "they agree")
    with pytest.raises(AssertionError, match="shapes"):
        begun.assert_close(torch.ones(2), torch.ones(1), 1e-3, "they agree")


def test_figures_need_alt_text_and_are_closed(begun: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict] = []
    monkeypatch.setattr(lesson, "display", lambda data, **kwargs: shown.append(kwargs["metadata"]))
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="alt text"):
        begun.show(figure, alt=" ")
    begun.show(figure, alt="An empty plot.")
    assert shown == [{"image/png": {"alt": "An empty plot."}}]
    assert not plt.fignum_exists(figure.number)


def test_a_widget_is_drawn_once_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setenv(lesson.STATIC, "1")
    lesson.widget(lambda x=4: drawn.append(x), x=(0, 9))
    assert drawn == [4]


@pytest.mark.parametrize("name", sorted(exercises.all_exercises()))
def test_every_exercise_knows_its_reference_and_its_misconceptions(name: str) -> None:
    exercise = exercises.named(name)
    given = exercise.reference() if exercise.asks_for_a_value else exercise.reference
    assert judge(given, exercise).kind == "right"
    assert exercise.hints, "an exercise has hints"
    assert exercise.misconceptions, "an exercise names at least one misconception"
    for sentence, mistake in exercise.misconceptions.items():
        verdict = judge(mistake() if exercise.asks_for_a_value else mistake, exercise)
        assert verdict.kind == "misconception" and sentence in verdict.sentence
    assert "def " in sources.fold(sources.PLACEHOLDER.match(f"{{{{solution:{name}}}}}"))  # type: ignore[arg-type]
