"""Checking attempts at exercises, and what a lesson does from its start to its record."""

import html
import inspect
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch import Tensor

from amp_tutorial.course import drawings, exercises, html_pages, lesson, run, sources
from amp_tutorial.course.exercises import Exercise, judge, same
from amp_tutorial.course.lesson import Lesson
from amp_tutorial.files import NOTEBOOKS
from amp_tutorial.reports import boards, style


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
        (stops, "raised", "[0, 1, 2, …], n = 0, your attempt stopped with IndexError"),
        (lambda: 1, "raised", "TypeError"),
        (
            first,
            "different",
            "In case 2 of 2, weight = a tensor of shape (4, 4) with [0, 1, 2, …], n = 1, your answer is",
        ),
        (lambda weight, n: weight[:, :1], "different", ", where a tensor of shape (4, 2) is asked for"),
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
    shown: list[tuple[dict, dict]] = []
    monkeypatch.setattr(lesson, "display", lambda data, **kwargs: shown.append((data, kwargs["metadata"])))
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="alt text"):
        begun.show(figure, alt=" ")
    begun.show(figure, alt='An empty "plot".')
    ((data, metadata),) = shown
    assert metadata == {"image/png": {"alt": 'An empty "plot".'}} and data["text/plain"] == 'An empty "plot".'
    assert data["text/html"].startswith('<img alt="An empty &quot;plot&quot;." src="data:image/png;base64,')
    assert "<details>" not in data["text/html"], "it has no numbers"
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize(
    ("said", "among", "found", "how", "noted", "beside"),
    [
        (None, (), 2, {}, "✎ Heads: put a number in place of None, and run on.", "Heads: 2. You made no prediction."),
        (None, ("a", "b"), "a", {}, "put one of 'a', 'b' in place of None", "Heads: a. You made no prediction."),
        (2, (), 2, {}, "Noted: 2.", "Heads: 2. You said 2: right."),
        (2.2, (), 2, dict(within=0.3), "Noted: 2.2.", "Heads: 2. You said 2.2: that is near."),
        (3, (), 2, dict(within=0.3, unit="×"), "Noted: 3.", "Heads: 2×. You said 3: think about what made"),
        ("b", ("a", "b"), "a", {}, "Noted: b.", "Heads: a. You said b: think about"),
        (64, (2048, 64), 2048, {}, "Noted: 64.", "Heads: 2048. You said 64: think about"),
        ("two", (), 2, {}, "✎ Heads: 'two' is not a number.", "Heads: 2. You made no prediction."),
        (True, (), 1, {}, "✎ Heads: True is not a number.", "You made no prediction."),
        ("c", ("a", "b"), "a", {}, "✎ Heads: 'c' is not one of 'a', 'b'.", "You made no prediction."),
        ([2], ("a", "b"), "a", {}, "✎ Heads: [2] is not one of 'a', 'b'.", "You made no prediction."),
        (3, (), "none there", {}, "Noted: 3.", "Heads: none there. You said 3: think about"),
    ],
)
def test_a_prediction_is_put_beside_what_is_found(
    begun: Lesson,
    capsys: pytest.CaptureFixture[str],
    said: Any,
    among: tuple,
    found: Any,
    how: dict,
    noted: str,
    beside: str,
) -> None:
    capsys.readouterr()
    begun.predict("heads", said, among=among)
    assert noted in capsys.readouterr().out
    begun.seen("heads", found, **how)
    assert beside in capsys.readouterr().out


def test_predictions_are_counted_and_can_be_taken_back(begun: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    for question, said in (("one", 1), ("two", 1)):
        begun.predict(question, said)
        begun.seen(question, 1 if question == "one" else 5)
    begun.seen("a cell that was not run", 3)
    begun.predict("three", 3)
    begun.seen("three", 3)
    begun.predict("three", None)  # run again
    begun.seen("three", 3)
    begun.finish()
    assert "Your predictions: 1 of 2 right or near." in capsys.readouterr().out


def drawn_numbers(draw: Callable[[Any], object]) -> list[list[str]]:
    """The cells of the table of a figure."""
    figure, ax = plt.subplots()
    draw(ax)
    figure.canvas.draw()
    found = ElementTree.fromstring(f"<all>{style.numbers(figure)}</all>")
    plt.close(figure)
    return [[cell.text or "" for cell in row] for row in found.iter("tr")]


def test_a_figure_comes_with_its_numbers() -> None:
    def bars(ax: Any) -> None:
        ax.bar([0, 1], [3, 4], yerr=[[1, 0.5], [0, 0.5]], label="mean & more")
        ax.set(xticks=[0, 1], xticklabels=["AMP", "random"], ylabel="accuracy", xlabel="")

    rows = [["mean & more", "AMP", "3 (2 to 3)"], ["mean & more", "random", "4 (3.5 to 4.5)"]]
    assert drawn_numbers(bars) == [["", "across", "accuracy"], *rows]

    def marks(ax: Any) -> None:
        ax.errorbar([1, 2], [10, 20], yerr=[[1, 2], [3, 4]], fmt="o", capsize=2, label="whiskers")
        ax.plot([1, 2], [100, 200], label="line")
        ax.scatter([5], [6])
        ax.axhline(3, label="chance")
        ax.axvline(2)  # only a help for the eye
        ax.set(xlabel="x", ylabel="y")

    rows = [["whiskers", "1", "10 (9 to 13)"], ["whiskers", "2", "20 (18 to 24)"], ["line", "1", "100"]]
    rows += [["line", "2", "200"], ["chance", "", "3"], ["", "5", "6"]]
    assert drawn_numbers(marks) == [["", "x", "y"], *rows]
    assert drawn_numbers(lambda ax: ax.barh([0], [2]))[1] == ["", "2", "0"]
    assert drawn_numbers(lambda ax: ax.plot([2.5, 1], ["AMP", "ours"], "o"))[1:] == [
        ["", "2.5", "AMP"],
        ["", "1", "ours"],
    ]
    assert drawn_numbers(lambda ax: ax.imshow([[0.5, 1], [2, 3]]))[1:] == [
        ["row 0", "", "0.5, 1"],
        ["row 1", "", "2, 3"],
    ]
    many = drawn_numbers(lambda ax: ax.plot(range(1000), range(1000)))
    assert len(many) == 1 + style.MOST and drawn_numbers(lambda ax: None) == []


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_is_sound_and_has_words(name: str, begun: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict] = []
    monkeypatch.setattr(lesson, "display", lambda data, **_: shown.append(data))
    begun.drawing(name)
    picture = ElementTree.fromstring(shown[0]["image/svg+xml"])
    words, (w, h) = "".join(picture.itertext()), map(int, picture.get("viewBox", "").split()[2:])
    assert shown[0]["text/plain"] in words and len(shown[0]["text/plain"].split()) > 25
    assert f'<img alt="{html.escape(shown[0]["text/plain"])}"' in shown[0]["text/html"]
    for shape in picture.iter():
        x, y = (float(shape.get(side, 0)) for side in ("x", "y"))
        wide, high = (float(shape.get(side, 0)) for side in ("width", "height"))
        assert 0 <= x <= w and 0 <= y <= h - 3 * shape.tag.endswith("text"), ElementTree.tostring(shape)
        assert shape.tag.endswith(("svg", "marker", "pattern")) or (x + wide <= w and y + high <= h)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_of_figures_are_seen_on_white_and_belong_to_one_way_to_choose() -> None:
    assert all(contrast(c, "#ffffff") >= 3 for c in (*style.PALETTE, *style.COLOURS.values(), boards.GREY))
    assert len(set(style.COLOURS.values())) == len(style.COLOURS) and len(set(style.PALETTE)) == len(style.PALETTE)
    named = {"AMP 30%": "AMP", "AMP reversed": "reversed", "random + repair": "random", "layers, SLEB": "layers"}
    assert {name: style.colour(name) for name in named} == {n: style.COLOURS[word] for n, word in named.items()}
    assert style.colour("anything else") == style.colour("dense")


@pytest.mark.parametrize("colours", [drawings.LIGHT, drawings.DARK], ids=["light", "dark"])
def test_drawings_can_be_read_in_both_variants(colours: dict[str, str]) -> None:
    for under in ("paper", "kept", "gone", "plain"):
        assert contrast(colours["ink"], colours[under]) >= 7
    assert contrast(colours["soft"], colours["paper"]) >= 4.5 and contrast(colours["soft"], colours["plain"]) >= 4.5
    for kind in ("kept", "gone", "plain"):
        assert contrast(colours[f"{kind}-line"], colours["paper"]) >= 3


def test_a_widget_is_drawn_once_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setenv(lesson.STATIC, "1")
    lesson.widget(lambda x=4: drawn.append(x), x=(0, 9))
    assert drawn == [4]


def test_a_widget_answers_where_somebody_is_and_says_when_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    calls: list[tuple[int, str, str]] = []
    monkeypatch.delenv(lesson.STATIC, raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "any.ipynb")
    monkeypatch.setattr(lesson, "display", shown.append)

    def answer(some_heads: int = 6, which: str = "b") -> None:
        """Its defaults are where the controls begin."""
        calls.append((some_heads, which, shown[0].children[0].value if shown else ""))
        if some_heads == 7:
            raise ValueError("no such thing")

    lesson.widget(answer, some_heads=(1, 8), which=["a", "b"])
    state, controls = shown[0].children
    slider, menu = controls.children[:2]
    assert calls[0] == (6, "b", ""), "the static twin comes first"
    assert (slider.value, slider.description, menu.value) == (6, "some heads", "b") and not slider.continuous_update
    slider.value = 3
    menu.value = "a"
    assert [call[:2] for call in calls[-2:]] == [(3, "b"), (3, "a")]
    assert calls[-1][2] == "working …" and state.value == "ready"
    slider.value = 7
    assert state.value == "ready", "a mistake ends it too"


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


# What students write in place of the right expression, with the arguments called as in the exercise.
WRONG = {
    "l0_share_of_blocks": [
        "remove * block_parameters / parameters",
        "remove",
        "1 - remove * parameters / block_parameters",
        "remove * parameters // block_parameters",
        "100 * remove * parameters / block_parameters",
        "print(remove * parameters / block_parameters)",
    ],
    "l0_keep_best": [
        "torch.argsort(scores, descending=True)[:keep].tolist()",
        "sorted(torch.argsort(scores)[:keep].tolist())",
        "sorted(scores.tolist(), reverse=True)[:keep]",
        "sorted(torch.argsort(scores, descending=True)[keep:].tolist())",
        "list(range(keep))",
    ],
    "l0_ship": [
        "max(plans, key=lambda n: plans[n][2])",
        "min(plans, key=lambda n: plans[n][0])",
        "max([n for n in plans if plans[n][0] <= megabytes], key=lambda n: plans[n][2], default=None)",
        "max([n for n in plans if plans[n][1] <= milliseconds], key=lambda n: plans[n][2], default=None)",
        "next((n for n in plans if plans[n][0] <= megabytes and plans[n][1] <= milliseconds), None)",
    ],
    "l1_head_slice": [
        "o_proj[head * head_dim : (head + 1) * head_dim]",
        "o_proj[:, head * head_dim : (head + 1) * head_dim].T",
        "o_proj[:, head : head + head_dim]",
        "o_proj[:, (head - 1) * head_dim : head * head_dim]",
        "o_proj[:, head * head_dim : (head + 1) * head_dim - 1]",
    ],
    "l1_heads_of_group": [
        "[h for h in range(heads) if h % groups == group]",
        "[group]",
        "list(range(group * groups, (group + 1) * groups))",
        "list(range(group * (heads // groups), (group + 1) * (heads // groups) - 1))",
        "[h + 1 for h in range(heads) if h // (heads // groups) == group]",
    ],
    "l1_group_cost": [
        "4 * head_dim * hidden",
        "3 * (heads // groups) * head_dim * hidden",
        "(2 * heads + 2 * groups) * head_dim * hidden",
        "(heads // groups + 2) * head_dim * hidden",
    ],
    "l1_neuron_cost": [
        "2 * hidden",
        "(3 if gated else 2) * hidden",
        "(3 if gated else 2) * (hidden + bias)",
        "3 * hidden",
    ],
    "l2_head_importance": [
        "((h @ W.T).abs().sum(-1)).mean()",
        "((h @ W.T).abs().sum(-1) * mask).mean()",
        "((h @ W.T).norm(dim=-1) * mask).sum() / mask.sum()",
        "(h.abs().sum(-1) * mask).sum() / mask.sum()",
        "((h @ W.T).sum(-1).abs() * mask).sum() / mask.sum()",
    ],
    "l2_prompt_average": [
        "(values * mask).sum() / mask.sum()",
        "values.mean()",
        "(values * mask).sum(1) / mask.sum(1)",
    ],
    "l3_cut_output": [
        "o_proj[[h * head_dim + j for h in kept_heads for j in range(head_dim)]]",
        "o_proj[:, kept_heads]",
        "o_proj[:, [i for i in range(o_proj.shape[1]) if i // head_dim not in kept_heads]]",
    ],
    "l3_cut_key": [
        "k_proj[[h * head_dim + j for h in kept_heads for j in range(head_dim)]]",
        "k_proj[sorted({h // group_size for h in kept_heads})]",
    ],
    "l3_neurons_to_remove": [
        "(target - heads_removed * 4 * head_dim * hidden) // (3 * hidden)",
        "(target - heads_removed * 4 * head_dim * hidden) / (3 * hidden)",
        "round((target - heads_removed * 4 * head_dim * hidden) / hidden)",
        "round(target / (3 * hidden))",
    ],
    "l3b_agrees": [
        "torch.allclose(found, wanted)",
        "bool((found == wanted).all())",
        "bool((found - wanted).abs().max() < 1e-5)",
        "bool((found[mask.bool()] - wanted[mask.bool()]).max() <= 1e-5 * wanted[mask.bool()].max())",
        "bool((found.argmax(-1) == wanted.argmax(-1)).all())",
    ],
    "l3b_without_rows": [
        "(weight[kept], bias)",
        "(weight[:, kept], bias[kept])",
        "(weight[kept], bias[:len(kept)])",
        "weight[kept]",
    ],
    "l3b_diagnosis": [
        "'shapes' if stops else 'plan or indices' if not as_the_mask else 'rows' if first_label_is_bos else 'nothing'",
        "'rows' if first_label_is_bos else 'shapes' if stops else 'config' if not same_each_load else 'nothing'",
        "'config' if not same_each_load else 'nothing'",
    ],
    "l4_merge": ["weight + alpha * (b @ a)", "weight + b @ a", "alpha / a.shape[0] * (b @ a)"],
    "l4_labels": ["prompt + response", "response", "[0] * len(prompt) + response"],
    "l4_closed": [
        "(recovered - pruned) / (dense - pruned)",
        "recovered / dense",
        "recovered - pruned",
        "(dense_tuned - recovered) / (dense_tuned - pruned)",
    ],
    "l5_perplexity": [
        "math.exp(sum(window_losses) / len(window_losses))",
        "sum(x * n for x, n in zip(window_losses, window_tokens)) / sum(window_tokens)",
        "sum(math.exp(x) * n for x, n in zip(window_losses, window_tokens)) / sum(window_tokens)",
    ],
    "l5_standard_error": [
        "statistics.stdev(correct)",
        "1.96 * statistics.stdev(correct) / math.sqrt(len(correct))",
        "statistics.stdev(correct) / len(correct)",
    ],
    "l5_equal_neurons": ["heads_gone * head_cost // neuron_cost", "heads_gone * head_cost / neuron_cost"],
    "l6_wanda_neurons": [
        "down.abs().mean(1) * a.square().mean(0).sqrt()",
        "down.abs().mean(0) * a.abs().mean(0)",
        "a.square().mean(0).sqrt()",
    ],
    "l6b_schedule": ["[target] * shots", "[current - (current - target) * (k + 1) / shots for k in range(shots)]"],
    "l6_told_apart": [
        "'first' if sum(first) < sum(second) else 'second'",
        "'second' if sum(first) < sum(second) else 'first'",
        "'first' if all(a < b for a, b in zip(first, second)) else "
        "'second' if all(a > b for a, b in zip(first, second)) else 'neither'",
        "'neither' if abs(statistics.fmean(first) - statistics.fmean(second)) <= 4.3 * math.sqrt((statistics.variance("
        "first) + statistics.variance(second)) / 3) else 'first' if sum(first) < sum(second) else 'second'",
    ],
    "l6_taylor": [
        "(weight * gradient).sum(1).abs()",
        "(weight.abs() * gradient).sum(1)",
        "(weight * gradient).abs().sum(0)",
        "(weight * gradient).abs().mean(1)",
    ],
    "l6b_cheapest_first": [
        "sorted(range(len(scores)), key=lambda k: scores[k])[: int(budget / (sum(costs) / len(costs)))]",
        "[k for k in range(len(scores)) if costs[k] <= budget]",
        "sorted(k for n, k in enumerate(o) if sum(costs[j] for j in o[: n + 1]) <= budget) "
        "if (o := sorted(range(len(scores)), key=lambda k: scores[k] / costs[k])) else []",
    ],
    "l6b_without_partner": [
        "[j for j in kept if j + head_dim // 2 not in kept]",
        "[j for j in kept if (j ^ 1) not in kept]",
        "[j for j in kept if (j + head_dim // 2) % head_dim in kept]",
        "sorted(set(range(head_dim)) - set(kept))",
    ],
    "l7_made_anew": [
        "sorted({int(n.split('.')[2]) for n in names if '.layers.' in n} - set(range(layers)))",
        "sorted({int(n.split('.')[2]) for n in names if '.layers.' in n} & set(range(layers)))",
        "list(range(len({n.split('.')[2] for n in names if '.layers.' in n}), layers))",
        "sorted({int(n.split('.')[2]) for n in names if '.layers.' in n})",
    ],
    "l7_votes": ["{i: sum(d[i] for d in distances.values()) for i in next(iter(distances.values()))}"],
    "l7_one_at_a_time": ["sorted(sorted(layers, key=score(list(layers)).get)[remove:])"],
    "l8_refit": [
        "torch.linalg.lstsq(x, y).solution.T",
        "torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y).T",
        "torch.linalg.solve(x.T @ x + (p := (ridge * (x.T @ x).diagonal()).diag()), x.T @ y + p @ old.T)",
    ],
    "l8_target": ["dense_adds", "own_before - dense_before - dense_adds", "dense_before + dense_adds"],
    "l8_cost": [
        "old.square().sum(0) / (x.T @ x).diagonal()",
        "old.square().sum(0) * torch.linalg.inv(x.T @ x).diagonal()",
        "old.norm(dim=0) / torch.linalg.inv(x.T @ x).diagonal()",
        "old.square().sum(0) * x.square().sum(0)",
    ],
    "l8b_turned": ["weight @ q", "(weight * norm) @ q.T", "(weight @ q) * norm", "norm * (weight @ q.T)"],
    "l8b_directions": [
        "int((torch.linalg.svdvals(x).cumsum(0) / torch.linalg.svdvals(x).sum() < share).sum()) + 1",
        "int((torch.linalg.svdvals(x).square().cumsum(0) < share * x.square().sum()).sum())",
        "math.ceil(share * x.shape[1])",
    ],
    "l8b_claim": [
        "'holds' if sum(costs['stream']) > max(sum(costs['mlp']), sum(costs['attention'])) else 'fails'",
        "'holds' if all(a > b for a, b in zip(costs['stream'], costs['mlp'])) else 'fails'",
        "'holds' if costs['stream'][0] > max(costs['attention'][0], costs['mlp'][0]) else 'fails'",
    ],
    "l8c_neurons_left": [
        "neurons - int((ratio * total / layers - heads_cost) / neuron_cost)",
        "neurons - math.ceil(ratio * total / layers / neuron_cost)",
        "math.ceil((ratio * total / layers - heads_cost) / neuron_cost)",
        "neurons - math.ceil((ratio * total / layers - heads_cost) / neuron_cost)",
    ],
    "l8c_winner": ["apart.index(min(apart))", "removed.index(max(removed))", "min(apart)"],
    "l8c_surprise": [
        "'adds up' if together == sum(alone) else 'worse' if together > sum(alone) else 'better'",
        "'better' if together > sum(alone) else 'worse'",
        "'worse' if together > max(alone) else 'better'",
    ],
    "l9_mended": ["(cut - repaired) / (cut - dense)", "1 - math.log(cut / repaired) / math.log(cut / dense)"],
    "l9_sink_share": ["attention[:, :, 0].mean(dim=1)", "attention[:, 0, 1:].mean(dim=1)"],
    "l9_repeated": [
        "1 - len(set(words)) / len(words)",
        "1 - len({tuple(words[k : k + 3]) for k in range(len(words) - 2)}) / len(words)",
        "len({tuple(words[k : k + 3]) for k in range(len(words) - 2)}) / max(1, len(words) - 2)",
    ],
    "b_kv_cache_bytes": [
        "layers * groups * head_dim * bytes_per_number * tokens * texts",
        "2 * layers * groups * head_dim * tokens * texts",
    ],
}


def test_wrong_answers_are_told_what_is_wrong_with_them() -> None:
    """None passes, none is told the answer, and at least 80 % of them are told the mistake that they make."""
    assert WRONG.keys() == exercises.all_exercises().keys()
    told: list[bool] = []
    passed: list[str] = []
    for name, expressions in WRONG.items():
        exercise = exercises.named(name)
        arguments = ", ".join(inspect.signature(exercise.reference).parameters)
        for expression in expressions:
            scope = dict(torch=torch, math=math, statistics=statistics)
            verdict = judge(eval(f"lambda {arguments}: {expression}", scope), exercise)
            passed += [f"{name}: {expression}"] if verdict.kind in ("right", "unsolved") else []
            told.append(verdict.kind == "misconception")
            if not told[-1]:
                print(f"{name}: {expression}\n    {verdict.sentence}")
    assert not passed
    assert len(told) >= 60 and sum(told) >= 0.8 * len(told), f"{sum(told)} of {len(told)}"


def test_what_a_student_prints_on_the_way_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def talks(weight: Tensor, n: int) -> Tensor:
        print("so far so good")
        return columns(weight, n)

    assert judge(talks, SLICE).kind == "right" and "so far so good" in capsys.readouterr().out


def test_conclusions_say_where_a_run_does_not_bear_them_out(begun: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    begun.conclude({"Two is 2.": True})
    begun.conclude({"Two is 3.": False})
    assert capsys.readouterr().out == "• Two is 2.\n• Otherwise in this run, so think again: not “Two is 3.”\n"
    assert begun.record.notes["conclusions"] == {"Two is 2.": True, "Two is 3.": False}


def test_the_course_is_all_lessons_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--lessons", "nine"])
    lessons = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb") if path.stem[0].isdigit())
    assert f"no lesson begins with nine; there are {', '.join(lessons)}" in capsys.readouterr().err
    assert {"03b_museum", "08c_budget"} < set(lessons) and len(lessons) == 14


def test_a_page_fetches_nothing_and_draws_its_formulas() -> None:
    markdown = "Of $h_n$ and `$x$`:\n\n$$\\sum_n \\lVert h_n \\rVert_1$$"
    cells = [new_markdown_cell(markdown), new_code_cell("print('$a$')", metadata={"tags": ["hide-input"]})]
    page = html_pages.page_of(new_notebook(cells=cells))
    assert page.count("<math") == 2 and "$x$" in page and "$a$" in page and "<details><summary>Code" in page
    assert "<script" not in page and "FORMULA" not in page
