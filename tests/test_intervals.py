"""Intervals: how often they hold the truth, that none is without width, and what a paired comparison gains."""

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from amp_tutorial.measure import comparisons, intervals
from amp_tutorial.measure.comparisons import Comparison
from amp_tutorial.measure.intervals import Interval, Items, Windows

RUNS = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.fixed_dictionaries({t: st.text("01", min_size=n, max_size=n) for t in "ab"}), min_size=1)
)
LOSSES = st.lists(
    st.lists(st.floats(0, 50), min_size=3, max_size=3).map(lambda losses: (losses, [4, 1, 9])), min_size=1, max_size=4
)


def bits(answers: Sequence[bool] | np.ndarray) -> str:
    return "".join("01"[int(a)] for a in answers)


def ends(found: Interval | Comparison) -> tuple[float, float]:
    assert found.low is not None and found.high is not None, found.over
    return found.low, found.high


def test_a_proportion_has_wilsons_interval() -> None:
    for right, n in ((0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (581, 600), (1, 10_042)):
        wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert ends(intervals.proportion(right, n)) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), ((1, 0), (3, 2), (-1, 5), (math.nan, 5), (1, math.inf)))
def test_what_is_no_proportion_is_refused(right: float, n: float) -> None:
    with pytest.raises(ValueError, match="is not a proportion; give at least one item"):
        intervals.proportion(right, n)


def test_over_seeds_it_is_students() -> None:
    found = intervals.over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.over, found.seeds) == (2.0, "seeds", 3)
    wanted = stats.t.interval(0.95, 2, loc=2, scale=1 / math.sqrt(3))
    assert ends(found) == pytest.approx(wanted)
    twenty = intervals.over_seeds(list(range(20)))  # no table that ends at ten
    assert ends(twenty) == pytest.approx(stats.t.interval(0.95, 19, loc=9.5, scale=stats.sem(range(20))))


def test_seeds_that_all_gave_the_same_have_no_interval_over_seeds() -> None:
    found = intervals.over_seeds([0.7, 0.7, 0.7])
    assert (found.low, found.high, found.over) == (None, None, "seeds that all gave the same")
    assert found.percent() == "70.0 (seeds that all gave the same)"


@pytest.mark.parametrize("wrong", (math.nan, math.inf, -math.inf))
def test_numbers_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="A value of a seed is .*; an interval needs finite numbers."):
        intervals.over_seeds([1.0, wrong])
    with pytest.raises(ValueError, match="The loss of a window is .*; an interval needs finite numbers."):
        intervals.perplexity([([1.0, wrong], [3, 3])])
    with pytest.raises(ValueError, match="The loss of a window is"):
        comparisons.compare_perplexity({0: ([1.0, 2.0], [3, 3])}, {0: ([wrong, 2.0], [3, 3])})


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        intervals.over_seeds([1.0])
    nothing: list[list[Items]] = [[], [{}], [{"a": ""}], [{"a": "11"}, {"a": "111"}], [{"a": "1"}, {"b": "1"}]]
    for runs in nothing:
        with pytest.raises(ValueError, match="at least one run, all of the same tasks"):
            intervals.accuracy(runs)
    with pytest.raises(ValueError, match="1 .right. or 0 .wrong., not 'x'"):
        intervals.accuracy([{"a": "1x"}])
    for windows in (list[Windows](), [([1.0], [1]), ([1.0], [2])], [([1.0], [1, 2])]):
        with pytest.raises(ValueError, match="at least one run, all on the same windows"):
            intervals.perplexity(windows)
    for windows in ([(list[float](), list[int]())], [([0.0], [0])], [([1.0, 1.0], [4, -1])]):
        with pytest.raises(ValueError, match="at least one token"):
            intervals.perplexity(windows)


def test_what_was_not_measured_alike_is_not_compared() -> None:
    for other in ({"a": "111"}, {"b": "11"}, {"a": "11", "b": "11"}):
        with pytest.raises(ValueError, match="compared on the same items"):
            comparisons.compare_accuracy({0: {"a": "11"}}, {0: other})
    with pytest.raises(ValueError, match="compared on the same windows"):
        comparisons.compare_perplexity({0: ([1.0, 2.0], [3, 3])}, {0: ([1.0, 2.0], [3, 4])})


@given(RUNS)
@settings(max_examples=200, deadline=None)
def test_an_accuracy_lies_within_its_interval_which_has_a_width_and_stays_within_0_and_1(runs: list[Items]) -> None:
    found = intervals.accuracy(runs)
    low, high = ends(found)
    assert 0 <= low <= found.value + 1e-12 and found.value <= high + 1e-12 and high <= 1 + 1e-12 and high - low > 0.005
    assert "± 0.0" not in found.percent() and found.value == pytest.approx(
        np.mean([[run[task].count("1") / len(run[task]) for task in "ab"] for run in runs])
    )


@given(RUNS, RUNS)
@settings(max_examples=60, deadline=None)
def test_a_comparison_of_accuracies_has_a_width_and_turns_its_sign_with_its_sides(
    a: list[Items], b: list[Items]
) -> None:
    n = min(len(a[0]["a"]), len(b[0]["a"]))
    x, y = ({i: {t: run[t][:n] for t in run} for i, run in enumerate(side)} for side in (a, b))
    found, turned = comparisons.compare_accuracy(x, y), comparisons.compare_accuracy(y, x)
    low, high = ends(found)
    assert low <= found.difference <= high and high - low > 0.01
    assert turned.difference == pytest.approx(-found.difference, abs=1e-12)
    # Resamples are finite, so the two sides agree but for a few hundredths of the width.
    assert ends(turned) == pytest.approx((-high, -low), abs=0.1 * (high - low))


@given(LOSSES)
@settings(max_examples=100, deadline=None)
def test_a_perplexity_never_reaches_below_zero_and_has_a_width_or_says_why_not(runs: list[Windows]) -> None:
    found = intervals.perplexity(runs)
    logs = [sum(losses) / sum(tokens) for losses, tokens in runs]
    assert found.value == pytest.approx(math.exp(np.mean(logs)))
    if found.low is None:
        assert found.over == "windows all alike" and found.high is None
    else:
        low, high = ends(found)
        assert 0 < low <= found.value * (1 + 1e-9) and found.value <= high * (1 + 1e-9) and low < high


def test_one_window_or_item_says_so() -> None:
    one = intervals.perplexity([([6.0], [3])])
    assert (one.low, one.over, one.bounds()) == (None, "one window", "7.39 (one window)")
    gap = comparisons.compare_perplexity({0: ([6.0], [3])}, {0: ([3.0], [3])})
    assert not gap.clear and gap.ratio() == "2.72 times (one window)"
    low, high = ends(intervals.accuracy([{"a": "1"}]))
    assert low < 0.25 and high == 1
    assert not comparisons.compare_accuracy({0: {"a": "1"}}, {0: {"a": "0"}}).clear


def test_windows_without_tokens_count_nothing() -> None:
    losses, tokens = [6.0, 4.0, 9.0], [3, 2, 5]
    assert intervals.perplexity([([*losses, 0.0], [*tokens, 0])]) == intervals.perplexity([(losses, tokens)])


def test_all_of_n_right_has_a_width() -> None:
    found = intervals.accuracy([{"a": "1" * 20}])
    assert found.value == 1 and ends(found) == pytest.approx((0.8389, 1), abs=1e-4)
    assert found.percent() == "100.0 (83.9 to 100.0)"
    alike = comparisons.compare_accuracy({0: {"a": "1" * 20}}, {0: {"a": "1" * 20}})
    assert alike.difference == 0 and not alike.clear and ends(alike)[0] < -0.05


def test_seeds_that_all_gave_the_same_fall_back_to_the_items() -> None:
    run = {"a": "1101" * 25}
    one, three = intervals.accuracy([run]), intervals.accuracy([run] * 3)
    assert (three.over, three.seeds) == ("items", 3) and ends(three) == pytest.approx(ends(one))
    windows = ([6.0, 4.0, 9.0], [3, 2, 5])
    alone, thrice = intervals.perplexity([windows]), intervals.perplexity([windows] * 3)
    assert thrice.over == "windows" and ends(thrice) == pytest.approx(ends(alone))


def test_the_seeds_are_in_the_interval() -> None:
    found = intervals.accuracy([{"a": bits(np.arange(400) < right)} for right in (300, 200, 340)])
    seeds = intervals.over_seeds([0.75, 0.5, 0.85])
    assert found.over == "seeds and items" and found.value == pytest.approx(0.7)
    low, high = ends(found)
    assert low < ends(seeds)[0] + 1e-9 and high == 1  # Student's reaches 1.15
    assert intervals.accuracy([{"a": "10"}, {"a": "01"}]).over == "items"  # alike in all but the items themselves


def test_perplexity_is_symmetric_in_logs() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(10, 30, 200)
    losses = 3 + generator.normal(0, 0.5, 200)
    up, down = (intervals.perplexity([((sign * (losses - 3) + 3) * tokens, tokens)]) for sign in (1, -1))
    # Losses mirrored about 3 nats: perplexities and ends mirrored about e³ on a scale of factors.
    assert ends(up)[0] * ends(down)[1] == pytest.approx(math.exp(6), rel=1e-9)
    assert up.value / ends(up)[0] == pytest.approx(ends(up)[1] / up.value, rel=0.01)


def test_a_ratio_does_not_depend_on_how_large_the_perplexities_are() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(10, 30, 50)
    a, b = (generator.normal(3, 0.5, (3, 50)) for _ in "ab")
    small, large = (
        comparisons.compare_perplexity(*({s: ((x[s] + by) * tokens, tokens) for s in range(3)} for x in (a, b)))
        for by in (0, 5)
    )
    assert (*ends(small), small.difference) == pytest.approx((*ends(large), large.difference))
    logs = [float((a[s] - b[s]) @ tokens / tokens.sum()) for s in range(3)]
    assert small.difference == pytest.approx(np.mean(logs)) and small.over == "seeds and windows"
    assert small.ratio().startswith(f"{math.exp(float(np.mean(logs))):.2f} times (")


def test_a_mean_loss_that_no_float_holds_is_an_infinite_perplexity() -> None:
    assert intervals.perplexity([([900.0, 800.0], [1, 1])]).value == math.inf


def test_pairing_is_narrower_where_items_are_hard_for_both() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(600)
    a, b = ({"a": bits(hard < p + generator.normal(0, 0.01, 600))} for p in (0.72, 0.68))
    paired = comparisons.compare_accuracy({0: a}, {0: b})
    apart = comparisons.compare_intervals(intervals.accuracy([a]), intervals.accuracy([b]))
    assert paired.difference == pytest.approx(apart.difference)
    widths = [high - low for low, high in (ends(paired), ends(apart))]
    assert widths[0] < 0.5 * widths[1]
    assert paired.clear and not apart.clear and not apart.paired


def test_one_side_without_a_seed_stands_against_every_seed_of_the_other() -> None:
    generator = np.random.default_rng(0)
    tokens = np.full(40, 20)
    base = generator.normal(60, 5, 40)
    seeded = {s: (base + shift, tokens) for s, shift in enumerate((2.0, 4.0, 6.0))}
    alone, thrice = {0: (base, tokens)}, {s: (base, tokens) for s in seeded}
    one, three = (comparisons.compare_perplexity(seeded, other) for other in (alone, thrice))
    assert one.seeds == 3 and one.over == three.over == "seeds"  # every window was shifted alike
    assert (*ends(one), one.difference) == pytest.approx((*ends(three), three.difference))
    assert ends(one) == pytest.approx(ends(intervals.over_seeds([0.1, 0.2, 0.3])), rel=0.01)


def test_the_same_seeds_are_paired_in_whatever_order_and_others_are_not() -> None:
    generator = np.random.default_rng(0)
    tokens, base = np.full(40, 20), generator.normal(60, 5, 40)
    noise = generator.normal(0, 1, 40)
    a = {s: (base + shift, tokens) for s, shift in enumerate((10.0, 40.0, 70.0))}
    b = {s: (a[s][0] - 4 + noise, tokens) for s in (2, 0, 1)}
    others = {s + 7: windows for s, windows in b.items()}
    assert comparisons.compare_perplexity(a, b).clear and not comparisons.compare_perplexity(a, others).clear


def test_losses_are_weighted_by_tokens() -> None:
    a, b = ([4.0, 100.0], [1, 99]), ([2.0, 100.0], [1, 99])
    assert comparisons.compare_perplexity({0: a}, {0: b}).difference == pytest.approx(0.02)


def test_of_intervals_alone_the_halves_that_face_each_other_count() -> None:
    a, b = Interval(5.0, 4.0, 8.0, "items", 9), Interval(3.0, 1.0, 3.5, "items", 9)
    assert ends(comparisons.compare_intervals(a, b)) == pytest.approx((2 - math.hypot(1, 0.5), 2 + math.hypot(3, 2)))
    logs = comparisons.compare_intervals(a, b, logs=True)
    assert logs.difference == pytest.approx(math.log(5 / 3)) and logs.clear
    one = Interval(9.0, None, None, "one window", 1)
    assert not comparisons.compare_intervals(a, one, logs=True).clear
    with pytest.raises(ValueError, match="Only positive numbers"):
        comparisons.compare_intervals(a, Interval(1.0, 0.0, 2.0, "seeds", 3), logs=True)


def crossed(
    generator: np.random.Generator, seeds: int, n: int, of_seed: float, of_item: float, both: float
) -> np.ndarray:
    """Loss a token of a system beyond another's, 0.1 on average: a part of the seed, one of the item, and of both."""
    parts = generator.normal(0, of_seed, (seeds, 1)), generator.normal(0, of_item, n)
    return np.asarray(0.1 + parts[0] + parts[1] + generator.normal(0, both, (seeds, n)))


@pytest.mark.parametrize(
    ("seeds", "n", "of_seed", "of_item", "both"),
    (
        (1, 5, 0.0, 0.3, 0.0),  # few windows
        (1, 100, 0.0, 0.3, 0.0),
        (3, 100, 0.0, 0.3, 0.0),  # the seed moves nothing
        (3, 100, 0.1, 0.05, 0.05),  # it moves almost all
        (3, 100, 0.05, 0.3, 0.3),
        (3, 20, 0.1, 0.3, 0.0),
        (5, 20, 0.1, 0.3, 0.1),
    ),
)
def test_a_comparison_of_losses_holds_the_truth_in_95_percent(
    seeds: int, n: int, of_seed: float, of_item: float, both: float
) -> None:
    generator, held, times = np.random.default_rng(1), 0, 300
    for _ in range(times):
        tokens, base = generator.integers(10, 40, n), generator.normal(2, 1, n)
        more = crossed(generator, seeds, n, of_seed, of_item, both)
        a = {s: ((base + more[s]) * tokens, tokens) for s in range(seeds)}
        low, high = ends(comparisons.compare_perplexity(a, {0: (base * tokens, tokens)}))
        held += low <= 0.1 <= high
    assert 0.92 <= held / times <= 0.995  # two standard errors of 300 trials are 2.5 points


def test_drawing_three_seeds_with_replacement_would_hold_it_far_less_often() -> None:
    generator, times, seeds, n = np.random.default_rng(1), 300, 3, 100
    held = 0
    for _ in range(times):
        more = crossed(generator, seeds, n, 0.1, 0.05, 0.05)
        chosen = generator.multinomial(seeds, np.full(seeds, 1 / seeds), 400) / seeds
        items = generator.multinomial(n, np.full(n, 1 / n), 400) / n
        low, high = np.quantile(np.einsum("rs,sn,rn->r", chosen, more, items), (0.025, 0.975))
        held += low <= 0.1 <= high
    assert held / times < 0.85


def test_accuracies_and_their_differences_hold_the_truth_in_95_percent() -> None:
    """Three tasks, of which one is almost always right; B answers as A, but forgets some items."""
    generator, times, n = np.random.default_rng(1), 300, 100
    chances = (0.995, 0.6, 0.4)
    held = {"one": 0, "difference": 0}
    for _ in range(times):
        a = {f"{p}": generator.random(n) < p for p in chances}
        b = {task: right & (generator.random(n) < 0.95) for task, right in a.items()}
        x, y = ({task: bits(right) for task, right in side.items()} for side in (a, b))
        low, high = ends(intervals.accuracy([x]))
        held["one"] += bool(low <= np.mean(chances) <= high)
        low, high = ends(comparisons.compare_accuracy({0: x}, {0: y}))
        held["difference"] += bool(low <= 0.05 * np.mean(chances) <= high)
    assert all(0.92 <= count / times <= 0.99 for count in held.values()), held


def test_accuracies_over_seeds_hold_the_truth_in_95_percent() -> None:
    generator, times, n, seeds = np.random.default_rng(1), 300, 100, 3
    held, truth = 0, 0.6
    for _ in range(times):
        luck = generator.random(n)  # of the item, the same for all seeds, in half of the cases
        right = [np.where(generator.random(n) < 0.5, luck, generator.random(n)) for _ in range(seeds)]
        shift = generator.normal(0, 0.05, seeds)
        low, high = ends(intervals.accuracy([{"a": bits(r < truth + s)} for r, s in zip(right, shift, strict=True)]))
        held += low <= truth <= high
    assert 0.93 <= held / times <= 0.995


def test_equal_systems_are_told_apart_in_one_of_twenty_cases() -> None:
    """The caveat on many comparisons, and that a claim is no more often wrong than it says."""
    generator, clear = np.random.default_rng(1), 0
    for _ in range(300):
        a, b = ({0: {"a": bits(generator.random(100) < 0.7)}} for _ in "ab")
        clear += comparisons.compare_accuracy(a, b).clear
    assert 0.02 <= clear / 300 <= 0.08


def test_the_same_data_give_the_same_interval() -> None:
    code = """
import numpy as np, sys
from amp_tutorial.measure import comparisons
g = np.random.default_rng(3)
a, b = ({s: {t: "".join(map(str, g.integers(0, 2, 50))) for t in "xy"} for s in range(3)} for _ in "ab")
print(comparisons.compare_accuracy(a, b), "torch" in sys.modules)
"""
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(said) == 1 and said.pop().endswith(" False\n")


def test_more_items_than_are_kept_are_resampled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ({0: {"a": bits(np.random.default_rng(s).random(60) < 0.7)}} for s in (0, 1))
    before = comparisons.compare_accuracy(a, b)
    monkeypatch.setattr("amp_tutorial.measure.intervals.KEPT", 10)
    assert comparisons.compare_accuracy(a, b) == before


def test_how_intervals_are_said() -> None:
    assert Interval(0.813, 0.792, 0.834, "items", 600).percent() == "81.3 ± 2.1"
    assert Interval(0.99, 0.946, 0.998, "items", 100).percent() == "99.0 (94.6 to 99.8)"
    assert Interval(38.85, 30.524, 49.444, "windows", 100).bounds() == "38.85 (30.52 to 49.44)"
    assert Interval(38.85, 30.524, 49.444, "windows", 100).factor() == "38.85 ×/÷ 1.27"
    narrow = Interval(1.00001, 1.000005, 1.00002, "windows", 100)
    assert narrow.bounds() == "1.00001 (1.00001 to 1.00002)" and narrow.factor() == "1.00001 ×/÷ 1.00001"
    assert Interval(5.0, None, None, "one window", 1).factor() == "5.00 (one window)"
    assert Comparison(0.032, 0.011, 0.053, "items", 600, 1).points() == "+3.2 points (+1.1 to +5.3)"
    assert Comparison(-0.07, -0.1, -0.04, "windows", 100, 1).ratio() == "0.93 times (0.90 to 0.96)"
    unknown = Comparison(0.5, None, None, "one window", 1, 1)
    assert unknown.points() == "+50.0 points (one window)" and not unknown.clear
