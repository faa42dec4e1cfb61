"""What a notebook can be told: parameters and their checks, the name of a run, presets that can be had offline."""

import ast
from pathlib import Path
from typing import Any

import papermill
import pytest
import torch
import yaml
from helpers import RECORD, grid, small

import amp_tutorial as amp
from amp_tutorial import cli
from amp_tutorial.files import DATA, NOTEBOOKS, ROOT
from amp_tutorial.files.downloads import KNOWN
from amp_tutorial.runs import execute, identity, parameters, sweep, workload
from amp_tutorial.runs import requirements as needs
from amp_tutorial.runs.identity import notebook_sha256
from amp_tutorial.runs.parameters import checked, parameters_of, parsed
from amp_tutorial.scale import peak_memory as peaks

PRESETS = sorted((amp.DATA / "presets").glob("*.yaml"))
WANTED = {
    "ci", "smollm2-20", "t4", "paper-llama-7b-20", "paper-llama-2-7b-30", "paper-phi-1_5-30", "paper-phi-2",
    "transact-llama-2-7b-paper", "transact-llama-2-7b-script",
}  # fmt: skip
PUBLISHED = {
    "huggyllama/llama-7b": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "NousResearch/Llama-2-7b-hf": 6_738_415_616,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "smollm2-135m": 134_515_008,
}  # sources and their grades: data/configs.yaml


def defaults() -> dict[str, Any]:
    """Of the reproduction notebook: the assignments in its parameters cell."""
    source = (ROOT / "notebooks" / "source" / "reproduce.py").read_text(encoding="utf-8")
    cell = source.split('# %% tags=["parameters"]')[1].split("\n# %%")[0]
    found = {}
    for line in ast.parse(cell).body:
        assert isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
        found[line.target.id] = ast.literal_eval(line.value)
    return found


DEFAULTS = defaults()


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: budgets are to be had before anything is."""
    monkeypatch.setenv("AMP_TUTORIAL_MODELS", str(tmp_path))
    needs._needs.cache_clear()


def test_all_are_there() -> None:
    assert {path.stem for path in PRESETS} == WANTED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_names_and_types_are_those_of_the_notebook(path: Path) -> None:
    found = read(path)
    assert found["preset"] == path.stem
    for name, value in found.items():
        assert type(value) is type(DEFAULTS[name]), name
    head = path.read_text(encoding="utf-8").partition("preset:")[0].splitlines()
    assert len(head) >= 3 and all(line.startswith("# ") and len(line) <= 120 for line in head)
    assert "Hardware: " in "\n".join(head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_have_the_published_number_of_parameters(name: str) -> None:
    config, said = needs.configuration_of(name)
    assert peaks.shadow(config, torch.float16).num_parameters() == PUBLISHED[name] and "data/configs" in said[0]
    assert set(needs.stored_configurations()) == set(PUBLISHED)


ALWAYS = ("ci", "paper-llama-2-7b-30")  # a budget of a large model takes seconds
BUDGETS = [path if path.stem in ALWAYS else grid(path)[0] for path in PRESETS]


@pytest.mark.parametrize("path", BUDGETS, ids=lambda path: path.stem)
def test_every_budget_can_be_had_offline(path: Path) -> None:
    told = amp.needs_of(DEFAULTS | read(path), speed=1e13)
    print(told)
    size = torch.finfo(getattr(torch, told.given["dtype"])).bits // 8
    assert told.weights == size * told.parameters[0] and told.parameters[1] < told.parameters[0]
    assert min(told.peaks.values()) > size * told.parameters[1]
    assert told.peak < 80 * 2**30, "one GPU of 80 GB is enough for all of them"
    assert (told.download > size * told.parameters[0] / 2) == ("/" in told.model or told.model in KNOWN)


def told(name: str) -> needs.Needs:
    return amp.needs_of(DEFAULTS | read(amp.DATA / "presets" / f"{name}.yaml"), speed=2e13)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("paper-llama-2-7b-30", pytest.approx((1 - 0.3003) * 6_738_415_616, rel=1e-4)),
        *grid(
            ("paper-llama-7b-20", pytest.approx((1 - 0.2102) * 6_738_415_616, rel=1e-4)),
            ("transact-llama-2-7b-paper", pytest.approx(1.269e9, rel=1e-3)),
            ("transact-llama-2-7b-script", pytest.approx(2.54e9, rel=2e-3)),
        ),
    ],
)
def test_llama_2_7b_is_cut_as_the_papers_say(name: str, left: Any) -> None:
    found = told(name)
    assert found.parameters == (6_738_415_616, left)
    assert found.weights == 2 * 6_738_415_616, "13.48 GB"


def test_a_t4_is_enough_for_its_preset_in_both_precisions() -> None:
    """15 GiB can be used of its 16 GB; a product of its matrices at 20 TFLOP/s is assumed."""
    found = told("t4")
    found.check(needs.Has("cuda", 15 * 2**30, 2**40, 2**40))
    assert found.given["dtype"] == "float16" and 0.5 * 3600 < found.seconds < 1.5 * 3600


def test_a_laptop_is_enough_for_its_preset() -> None:
    assert told("smollm2-20").peak < 6 * 2**30 and told("ci").peak < 2**30


def test_without_a_gpu_the_time_of_a_preset_for_one_is_not_that_of_this_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half precision takes a CPU without it some 40,000 times as long as a GPU: that would be 172 years."""

    def timed(*_: Any) -> float:
        raise AssertionError("this machine was timed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workload, "matmul_speed", timed)
    needs = amp.needs_of(DEFAULTS | read(amp.DATA / "presets" / "paper-llama-2-7b-30.yaml"))
    assert 3600 < needs.seconds < 24 * 3600
    assert "TFLOP at 40% of 312 TFLOP/s, of an A100 80 GB, as its data sheet says; there is no GPU here" in str(needs)
    assert cli.main(["run", "--preset", "paper-llama-2-7b-30", "--dry-run"]) == 0
    assert "there is no GPU here" in capsys.readouterr().out
    text, seconds = sweep.cost(needs.given)
    assert "h on an A100 80 GB, as its data sheet says; there is no GPU here" in text
    assert "Not on this machine: device='cuda' is not there" in text
    assert seconds == needs.seconds


def test_what_runs_here_is_timed_here_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timed(size: int, repeats: int, dtype: torch.dtype, device: str) -> float:
        asked.append((dtype, device))
        return 1e12

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workload, "matmul_speed", timed)
    workload._timed.cache_clear()
    assert workload.speed_of("bfloat16", "auto") == workload.Speed(1e12, "") == workload.speed_of("bfloat16", "cpu")
    assert asked == [(torch.bfloat16, "cpu")], "once"
    workload._timed.cache_clear()


# The parameters cell, values checked by it, and the name of a run


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return small(tmp_path / "small.ipynb", "y = x + 1", RECORD)


def test_names_types_defaults_and_help_come_from_the_cell(notebook: Path) -> None:
    known = parameters_of(notebook)
    assert {name: p.default for name, p in known.items()} == dict(x=1, word="a", share=0.5, sure=True, out="out")
    assert (known["x"].kind, known["word"].kind, known["share"].kind, known["sure"].kind) == (int, str, float, bool)
    assert known["x"].help == "a number" and known["share"].help == ""


def test_types_of_parameters_are_for_papermill_and_make_no_other_run(tmp_path: Path) -> None:
    typed = small(tmp_path / "typed.ipynb", parameters='x: int = 1  # a number\nword: str = "a"  # a word\nshare = 0.5')
    plain = small(tmp_path / "plain.ipynb", parameters='x = 1  # a number\nword = "a"  # a word\nshare = 0.5')
    assert parameters_of(typed) == parameters_of(plain) and notebook_sha256(typed) == notebook_sha256(plain)
    for book in NOTEBOOKS.glob("*.ipynb"):
        seen = papermill.inspect_notebook(book)
        assert {name: p["inferred_type_name"] for name, p in seen.items()} == {
            name: p.kind.__name__ for name, p in parameters_of(book).items()
        }


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("x = 1\ny = x + 1", "y in the parameters cell must be a text"),
        ("x = (1, 2)", "x in the parameters cell must be a text"),
        ("x = None", "x in the parameters cell must be a text"),
        ("import os", "import os in the parameters cell"),
        ("x: int = 1.5", "x in the parameters cell has another type than its value"),
        ("x: int", "in the parameters cell must be a text"),
        ("x = 1\nx = 2", "x stands twice"),
        ("x = ", "the parameters cell cannot be parsed as Python"),
    ],
)
def test_what_papermill_would_not_see_is_refused(tmp_path: Path, cell: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parameters_of(small(tmp_path / "n.ipynb", parameters=cell))


def test_a_file_that_is_no_notebook_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No notebook"):
        parameters_of(tmp_path / "gone.ipynb")
    (tmp_path / "x.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a notebook"):
        parameters_of(tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"wrod": "b"}, r"p: no parameter is called 'wrod'\. Did you mean word\? Known: x, word, share, sure, out\."),
        ({"x": "1"}, "p: x='1' must be a whole number, such as 1"),
        ({"x": True}, "x=True must be a whole number"),
        ({"x": 1.0}, r"x=1\.0 must be a whole number"),
        ({"word": 1}, "word=1 must be text"),
        ({"share": "0.5"}, "share='0.5' must be a number"),
        ({"share": float("nan")}, "share=nan must be a number"),
        ({"share": 10**400}, "share=1000+ must be a number"),
        ({"share": True}, "share=True must be a number"),
        ({"sure": 1}, "sure=1 must be true or false, such as true"),
        ({"word": ("a", "b")}, r"word=\('a', 'b'\) must be text"),
        ({"word": None}, "word=None must be text"),
    ],
)
def test_a_wrong_name_or_type_is_one_sentence(notebook: Path, given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        checked(parameters_of(notebook), given, "p")


def test_all_values_are_there_after_defaults(notebook: Path) -> None:
    found = checked(parameters_of(notebook), {"share": 1, "x": 3}, "p")
    assert found == dict(x=3, word="a", share=1.0, sure=True, out="out") and type(found["share"]) is float


def test_text_of_the_command_line_has_the_type_of_its_parameter(notebook: Path) -> None:
    known = parameters_of(notebook)
    asked = ["x=3", "word=3", "share=0.25", "sure=false", "word=a=b"]
    assert [parsed(known, text)[1] for text in asked] == [3, "3", 0.25, False, "a=b"]
    with pytest.raises(ValueError, match="x='three' must be a whole number"):
        checked(known, dict([parsed(known, "x=three")]), "p")
    with pytest.raises(ValueError, match="say NAME=VALUE"):
        parsed(known, "x")


def test_an_unknown_preset_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "PRESETS", tmp_path)
    (tmp_path / "laptop.yaml").write_text("x: 2\n", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- 2\n", encoding="utf-8")
    (tmp_path / "torn.yaml").write_text("x: [2\n", encoding="utf-8")
    assert parameters.preset("laptop") == {"x": 2}
    for name, match in (("lapdog", "Did you mean laptop"), ("list", "a mapping"), ("torn", "cannot be read as YAML")):
        with pytest.raises(ValueError, match=match):
            parameters.preset(name)
    known = parameters_of(small(tmp_path / "n.ipynb"))
    assert parameters.effective(known, "laptop", {"word": "c"}, "-p")["x"] == 2
    assert parameters.effective(known, "laptop", {"x": 5}, "-p")["x"] == 5


# The name of a run


def test_a_run_is_named_by_code_parameters_data_and_model(tmp_path: Path) -> None:
    def name(cell: str = "y = x", **given: Any) -> str:
        notebook = small(tmp_path / "n.ipynb", cell, parameters='model = "tiny-llama"\nmy_text = "a"\nout = "out"')
        return execute.job(notebook, checked(parameters_of(notebook), given, "p")).id

    text = tmp_path / "text.txt"
    text.write_text("one", encoding="utf-8")
    first = name(my_text=str(text))
    assert len(first) == 16 and first == name(my_text=str(text)), "the same run"
    assert first == name(my_text=str(text), out="elsewhere"), "where it goes changes nothing"
    moved = text.rename(tmp_path / "moved.txt")
    assert first == name(my_text=str(moved)), "the same text elsewhere"
    others = {first, name(), name("y = x + 1"), name(model="tiny-phi"), name(my_text="tinyworld")}
    moved.write_text("two", encoding="utf-8")
    others.add(name(my_text=str(moved)))
    assert len(others) == 6


def test_prose_and_outputs_of_a_notebook_do_not_rename_its_runs(tmp_path: Path) -> None:
    import nbformat

    notebook = small(tmp_path / "n.ipynb", "y = x")
    before = identity.run_id(notebook, {"x": 1})
    nb = nbformat.read(notebook, as_version=4)
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("Read me."))
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="a")]
    nbformat.write(nb, notebook)
    assert identity.run_id(notebook, {"x": 1}) == before != identity.run_id(notebook, {"x": 2})


def test_a_local_model_is_named_by_the_content_of_its_files(tmp_path: Path) -> None:
    import shutil

    notebook = small(tmp_path / "n.ipynb", parameters='model = "tiny-llama"')
    for folder in ("a", "b"):
        shutil.copytree(DATA / "models" / "tiny-llama", tmp_path / folder)
    a, b = (execute.job(notebook, {"model": str(tmp_path / folder)}) for folder in ("a", "b"))
    assert a.id == b.id and a.parameters != b.parameters
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert execute.job(notebook, {"model": str(tmp_path / "b")}).id != a.id


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[0-9r]*.ipynb")), ids=lambda p: p.stem)
def test_every_lesson_can_be_told(path: Path) -> None:
    known = parameters_of(path)
    assert {"model", "ratio", "seed", "out"} <= known.keys()


def test_yaml_is_read_as_json_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rate: 3e-4\nother: 1e-3\nword: 1.2.3\n", encoding="utf-8")
    assert parameters.read_yaml(tmp_path / "a.yaml") == {"rate": 3e-4, "other": 1e-3, "word": "1.2.3"}
    (tmp_path / "b.yaml").write_text("rate: 1\nrate: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="rate stands twice"):
        parameters.read_yaml(tmp_path / "b.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        parameters.read_yaml(tmp_path / "gone.yaml")
