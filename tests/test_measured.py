"""From the metrics of records to intervals and comparisons, with and without items."""

import math
from typing import Any

import pytest

from amp_tutorial.measure import comparisons, intervals
from amp_tutorial.reports import measured
from amp_tutorial.reports.measured import compared, over

TOKENS = [10, 20, 30]


def run(seed: int, perplexity: dict[str, Any] | None = None, **accuracies: Any) -> dict[str, Any]:
    metrics = {name: value if isinstance(value, dict) else of_items(value) for name, value in accuracies.items()}
    return {"parameters": {"seed": seed}, "metrics": metrics | ({"tuned/perplexity": perplexity} if perplexity else {})}


def of_items(bits: str) -> dict[str, Any]:
    return dict(value=bits.count("1") / len(bits), n=len(bits), items=bits)


def of_windows(*losses: float) -> dict[str, Any]:
    return dict(value=math.exp(sum(losses) / 60), n=60, windows=[list(losses), TOKENS])


def test_with_items_and_windows_they_are_what_counts() -> None:
    runs = [run(s, of_windows(20.0 + s, 41.0, 66.0 - s), x="1101" * 5, y="1000" * 5) for s in range(3)]
    for record in runs:
        record["metrics"]["mean"] = dict(value=0.5, n=40, of=["x", "y"], low=0.0, high=1.0)
    windows = [(record["metrics"]["tuned/perplexity"]["windows"][0], TOKENS) for record in runs]
    assert over(runs, "tuned/perplexity") == intervals.perplexity(windows)
    assert over(runs, "mean") == intervals.accuracy([{"x": "1101" * 5, "y": "1000" * 5}] * 3)
    assert over(runs, "x") == intervals.accuracy([{"x": "1101" * 5}] * 3)
    gap = compared(runs, runs[:1], "tuned/perplexity")
    assert gap == comparisons.compare_perplexity(dict(enumerate(windows)), {0: windows[0]}) and gap.paired


def test_seeds_are_paired_by_name_and_not_by_order() -> None:
    a = [run(s, of_windows(20.0 + 9 * s, 41.0, 66.0)) for s in range(3)]
    b = [run(s, of_windows(21.0 + 9 * s, 42.1, 66.9)) for s in (2, 0, 1)]
    found = compared(b, a, "tuned/perplexity")
    assert found.difference == pytest.approx(0.05) and found.over == "windows", "every pair of seeds differs by 3 nats"


def test_without_items_seeds_have_students_interval_and_perplexities_theirs_on_logarithms() -> None:
    values = [20.0, 30.0, 66.0]
    runs = [run(s, dict(value=v, low=v / 2, high=v * 2, n=60)) for s, v in enumerate(values)]
    found, logs = over(runs, "tuned/perplexity"), intervals.over_seeds([math.log(v) for v in values])
    assert found is not None and found.low is not None and logs.low is not None and found.over == "seeds"
    assert found.value == pytest.approx(math.exp(logs.value)) and found.low == pytest.approx(math.exp(logs.low))
    assert 0 < found.low, "20, 30 and 66 on a straight scale would reach below zero"
    shares = [run(s, x=dict(value=v, low=0.1, high=0.9, n=10)) for s, v in enumerate((0.4, 0.5))]
    assert over(shares, "x") == intervals.over_seeds([0.4, 0.5])
    gap = compared(runs, runs, "tuned/perplexity")
    assert gap.difference == 0 and not gap.paired and not gap.clear


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.95, 1.05), (-0.01, 0.01)])
def test_an_interval_of_an_accuracy_without_width_or_beyond_0_to_1_gives_way_to_wilsons(
    low: float, high: float
) -> None:
    value = (low + high) / 2
    found = over([run(0, x=dict(value=value, low=low, high=high, n=20))], "x")
    wanted = intervals.proportion(20 * value, 20)
    assert found is not None and (found.low, found.high) == (wanted.low, wanted.high) and found.over == "items"


def test_one_record_keeps_the_interval_that_it_brings() -> None:
    found = over([run(0, dict(value=5.1, low=4.9, high=5.3), x=dict(value=0.5, low=0.4, high=0.6, n=90))], "x")
    assert found is not None and (found.low, found.high, found.n) == (0.4, 0.6, 90)
    found = over([run(s, dict(value=5.1, low=4.9, high=5.3)) for s in range(3)], "tuned/perplexity")
    assert found is not None and (found.low, found.over, found.seeds) == (4.9, "windows", 3)


def test_what_has_no_interval_says_so_and_what_is_not_there_is_none() -> None:
    found = over([run(0, gone=dict(value=0.3, low=None, high=None))], "gone")
    assert found is not None and (found.low, found.over) == (None, "one record")
    assert over([run(0, x="1"), run(1)], "x") is None and over([], "x") is None
    wild = over([run(0, dict(value=None, low=None, high=None))], "tuned/perplexity")
    assert wild is not None and math.isnan(wild.value) and wild.over == "a value that is not finite"
    with pytest.raises(ValueError, match="can't be compared by x, which a record of theirs does not have"):
        compared([run(0, x="1")], [run(0)], "x")


def test_what_is_a_perplexity_is_told_by_its_name() -> None:
    assert measured.is_perplexity("perplexity") and measured.is_perplexity("untuned/perplexity")
    assert not measured.is_perplexity("perplexity protocol") and not measured.is_perplexity("mean accuracy")
