"""Published numbers: as facts.md has them, each with its grade, and refused where something is missing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amp_tutorial.reports import reference
from amp_tutorial.reports.reference import Entry, read


def entries() -> dict[str, Entry]:
    return {entry.id: entry for paper in read() for block in paper.blocks for entry in block.entries}


# Spot values, as the papers or their summaries give them: value, unit, grade.
@pytest.mark.parametrize(
    ("name", "value", "unit", "grade"),
    [
        ("amp-llama-7b-20", 64.52, "%", "second-hand"),  # AMP: LLaMA-7B, 20 %
        ("amp-llama-2-7b-30", 61.02, "%", "second-hand"),  # LLaMA-2-7B, 30 %
        ("amp-phi-1_5-30", 54.24, "%", "second-hand"),  # Phi-1.5, 30 %
        ("amp-ablation-neurons", 56.93, "%", "second-hand"),
        ("amp-ablation-heads", 37.63, "%", "second-hand"),
        ("amp-reversed", 25, "points", "second-hand"),
        ("quoted-slicegpt-llama-2-7b-30", 51.50, "%", "second-hand"),
        ("amp-lead", 1.49, "points", "abstract"),
        ("elsewhere-wanda-sp", 66.12, "%", "second-hand"),
        ("elsewhere-dense", 65.44, "%", "second-hand"),
        ("amp-code-7", 21.02, "%", "arithmetic"),
        ("amp-time-llama-2-7b", 2.34, "s", "second-hand"),
        ("transact-parameters", 1.269, "B", "arithmetic"),
        ("transact-cache", 18.75, "%", "arithmetic"),
        ("transact-phone-256", -74, "%", "figure"),
        ("consensus-flops", -78.80, "%", "abstract"),
        ("consensus-carbon", -68.75, "%", "abstract"),
        ("peers-slicegpt-50-longer", 73.5, "", "measured"),
        ("peers-wanda-sp-in-flap-s-code-50-longer", 111.9, "", "measured"),
        ("repair-amp-repair-50-longer", 80.0, "", "measured"),
        ("rotation-0-375", 66.2, "", "measured"),
        ("scoring-amp-official-code", 2.9, "s", "measured"),
    ],
)
def test_values_are_those_of_the_facts(name: str, value: float, unit: str, grade: str) -> None:
    entry = entries()[name]
    assert (entry.value, entry.unit, entry.grade) == (value, unit, grade)


def test_what_was_not_found_is_listed_and_in_no_row() -> None:
    found = {paper.name: paper for paper in read()}
    assert "Phi-2" in found["amp"].not_found and "perplexities" in found["amp"].not_found
    assert found["transact"].not_found == ["tables of accuracy"]
    amp = [entry for block in found["amp"].blocks for entry in block.entries]
    assert not any("perplexity" in entry.metric or entry.model == "Phi-2" for entry in amp)
    assert not any("accuracy" in entry.metric for block in found["transact"].blocks for entry in block.entries)


def test_the_sums_of_the_arithmetic_are_right() -> None:
    """LLaMA-2-7B: 32 layers, 32 heads of 128, 11,008 neurons, 4,096 hidden, 32,000 tokens."""
    whole = 6_738_415_616

    def left(heads: int, neurons: int) -> int:
        layer = 4 * 4096 * heads * 128 + 3 * 4096 * neurons + 2 * 4096
        return 2 * 32_000 * 4096 + 32 * layer + 4096

    assert left(32, 11_008) == whole
    for name, entry in entries().items():
        if entry.widths and entry.ours and entry.metric.startswith("parameters"):
            stays = left(**entry.widths)
            exact = 100 * (1 - stays / whole) if entry.metric == "parameters removed" else stays * 1e-9
            assert entry.ours.rounding is not None and abs(exact - entry.value) <= entry.ours.rounding, name
    assert (entries()["amp-code-7"].widths, entries()["amp-code-10"].widths) == (
        dict(heads=32 - 7, neurons=11_008 - 7 * 344),
        dict(heads=32 - 10, neurons=11_008 - 10 * 344),
    )


def test_every_entry_says_where_it_is_from_and_how_sure_it_is() -> None:
    assert len(entries()) > 100
    assert all(entry.source and entry.grade in reference.GRADES for entry in entries().values())


def small() -> dict[str, Any]:
    entry = dict(
        id="a", system="S", model="M", ratio=0.2, metric="m", value=1.0, unit="%", source="t", grade="abstract"
    )
    return dict(paper="P", blocks=[dict(title="B", entries=[entry])], not_found=[], models={})


def written(folder: Path, content: Any) -> Path:
    (folder / "p.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    (paper,) = read(written(tmp_path, small()))
    assert paper.blocks[0].entries[0].ours is None and paper.link == ""


@pytest.mark.parametrize("lost", ["id", "system", "model", "metric", "value", "unit", "source", "grade", "ratio"])
def test_an_entry_that_lacks_something_is_refused(tmp_path: Path, lost: str) -> None:
    content = small()
    del content["blocks"][0]["entries"][0][lost]
    with pytest.raises(ValueError, match="p.yaml"):
        read(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(grade="certain"), "grade: 'certain'"),
        (dict(value="61"), "value: '61' is not of type 'number'"),
        (dict(rato=0.3), "'rato' was unexpected"),
        (dict(ours=dict(metric="m")), "'scale' is a required property"),
        (dict(ours=dict(metric="m", scale=1)), "no hub ids"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_in_one_sentence(tmp_path: Path, change: dict, says: str) -> None:
    content = small()
    content["blocks"][0]["entries"][0] |= change
    with pytest.raises(ValueError, match="p.yaml, a") as caught:
        read(written(tmp_path, content))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_given_twice_no_yaml_and_no_papers_are_refused(tmp_path: Path) -> None:
    content = small()
    content["blocks"][0]["entries"] *= 2
    with pytest.raises(ValueError, match="the id a is given twice"):
        read(written(tmp_path, content))
    (tmp_path / "p.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match="p.yaml cannot be read as YAML"):
        read(tmp_path)
    (tmp_path / "p.yaml").unlink()
    with pytest.raises(ValueError, match="no published numbers"):
        read(tmp_path)
