"""What a notebook can be told: its parameters cell, values checked by it, presets, and the name of a run."""

from pathlib import Path
from typing import Any

import pytest
from helpers import RECORD, small

from amp_tutorial.files.paths import DATA, NOTEBOOKS
from amp_tutorial.runs import execute, identity, parameters
from amp_tutorial.runs.parameters import checked, parameters_of, parsed


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return small(tmp_path / "small.ipynb", "y = x + 1", RECORD)


def test_names_types_defaults_and_help_come_from_the_cell(notebook: Path) -> None:
    known = parameters_of(notebook)
    assert {name: p.default for name, p in known.items()} == dict(x=1, word="a", share=0.5, sure=True, out="out")
    assert (known["x"].kind, known["word"].kind, known["share"].kind, known["sure"].kind) == (int, str, float, bool)
    assert known["x"].help == "a number" and known["share"].help == ""


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("x = 1\ny = x + 1", "y in the parameters cell must be a text"),
        ("x = (1, 2)", "x in the parameters cell must be a text"),
        ("x = None", "x in the parameters cell must be a text"),
        ("import os", "import os in the parameters cell"),
        ("x: int = 1", "in the parameters cell must be a text"),
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
