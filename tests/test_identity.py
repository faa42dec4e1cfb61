"""The name of a run: the same for the same run, wherever its files lie and whatever is cached; another for another."""

import gzip
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from helpers import small
from hypothesis import given
from hypothesis import strategies as st

from amp_tutorial.files import NOTEBOOKS
from amp_tutorial.runs import execute, identity, package_code, parameters
from amp_tutorial.runs import record as records
from amp_tutorial.runs.parameters import checked, parameters_of

TEXTS = 'model = "tiny-llama"\nmy_text = "tinyworld"\nshare = 0.5\nout = "out"'


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return small(tmp_path / "n.ipynb", "y = share", parameters=TEXTS)


def name(notebook: Path, **given: Any) -> str:
    return execute.job(notebook, checked(parameters_of(notebook), given, "p")).id


@given(st.floats(0, 1), st.floats(0, 1))
def test_runs_have_one_name_exactly_if_their_values_are_equal(a: float, b: float) -> None:
    lesson = sorted(NOTEBOOKS.glob("0*.ipynb"))[0]
    assert (name(lesson, ratio=a) == name(lesson, ratio=b)) == (a == b)


def test_a_whole_number_is_the_same_number(notebook: Path) -> None:
    assert name(notebook, share=1) == name(notebook, share=1.0)


def test_a_local_path_is_the_same_file_from_the_root_on(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("one", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    jobs = [execute.job(notebook, {"my_text": text}) for text in ("mine.txt", "./mine.txt", str(tmp_path / "mine.txt"))]
    assert len({job.id for job in jobs}) == 1
    assert {job.parameters["my_text"] for job in jobs} == {str(tmp_path / "mine.txt")}, "a run has a folder of its own"
    assert execute.Job("n.ipynb", {}, "0", "n").notebook == str(tmp_path / "n.ipynb")


def test_each_of_several_texts_counts_by_its_content_and_a_folder_of_scores_not_at_all(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, text in (("one.txt", "1"), ("two.txt", "2"), ("three.txt", "1")):
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two.txt").write_text("2", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    listed = execute.job(notebook, {"my_text": "one.txt, tinyworld,two.txt"})
    places = [str(tmp_path / "one.txt"), "tinyworld", str(tmp_path / "two.txt")]
    assert listed.parameters["my_text"] == ",".join(places)
    same = {"my_text": "one.txt,tinyworld,elsewhere/two.txt", "kept_scores": "scores"}
    assert execute.job(notebook, same).id == listed.id
    assert execute.job(notebook, same).parameters["kept_scores"] == str(tmp_path / "scores"), "not there yet"
    assert execute.job(notebook, {"my_text": "one.txt,tinyworld,one.txt"}).id != listed.id


def test_what_is_embedded_is_not_taken_from_a_folder_of_that_name(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name(notebook)
    for folder in ("tiny-llama", "tinyworld"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    assert name(notebook) == before
    assert execute.job(notebook, {"model": "tiny-llama", "my_text": "tinyworld"}).parameters["model"] == "tiny-llama"


def test_a_hub_model_keeps_its_name_when_it_is_fetched(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked for the commit before anything is fetched, so that a sweep finds its runs again."""
    asked = []

    def hub(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return f"/cache/models--a--b/snapshots/{'c' * 40 if revision else 'd' * 40}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    identity._commit.cache_clear()
    parameters = {"model": "a/b", "revision": ""}
    main, tag = (identity.run_id(notebook, parameters | {"revision": revision}) for revision in ("", "v1"))
    assert main != tag and asked == [("a/b", "config.json", None), ("a/b", "config.json", "v1")]
    assert identity.parts(notebook, parameters)["model"] == dict(name="a/b", commit="d" * 40)
    identity._commit.cache_clear()


def test_a_hub_model_that_nobody_knows_is_named_by_what_was_asked(notebook: Path) -> None:
    identity._commit.cache_clear()
    parts = identity.parts(notebook, {"model": "nobody/nothing", "revision": "v1"})
    assert parts["model"] == dict(name="nobody/nothing", revision="v1")


def test_a_preset_is_a_note_only_where_its_values_are_given(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a lesson preset = "full" asks for more items; in the reproduction notebook it says where values are from."""
    monkeypatch.setattr(parameters, "PRESETS", tmp_path)
    for file in ("ci", "smollm2-20"):
        (tmp_path / f"{file}.yaml").write_text("share: 0.5\n", encoding="utf-8")
    noted, also, smallest, full = (
        identity.run_id(notebook, {"preset": p}) for p in ("ci", "smollm2-20", "smallest", "full")
    )
    assert noted == also and len({noted, smallest, full}) == 3


def test_local_copies_count_by_content(notebook: Path, tmp_path: Path) -> None:
    def parts(copies: str) -> Any:
        return identity.parts(notebook, {"my_text": "alpaca", "local_copies": copies})["data"]

    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "alpaca.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "copies" / "alpaca-other.jsonl").write_text('{"text": "two"}\n', encoding="utf-8")
    first = parts(str(tmp_path / "copies"))
    assert first != parts("") == {"my_text": "alpaca"}
    (tmp_path / "copies" / "alpaca.jsonl").write_text('{"text": "three"}\n', encoding="utf-8")
    assert parts(str(tmp_path / "copies")) != first


def test_the_hash_of_a_local_copy_is_of_the_file_that_is_read(notebook: Path, tmp_path: Path) -> None:
    def data() -> Any:
        return identity.parts(notebook, {"my_text": "c4", "local_copies": str(tmp_path)})["data"]

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())

    put("c4-notes.txt", "notes")
    assert data() == {"my_text": "c4"}, "the notes are no copy"
    put("c4.json.gz", '{"text": "one"}')
    first = data()
    put("c4-notes.txt", "other notes")
    assert data() == first != {"my_text": "c4"}
    put("c4.json.gz", '{"text": "another"}')
    assert data() != first
    (tmp_path / "c4.json.gz").unlink()
    put("c4/train.jsonl", '{"text": "one"}')
    put("c4/test.jsonl", '{"text": "two"}')
    first = data()
    put("c4/constraints.txt", "read by nobody")
    assert data() == first
    put("c4/test.jsonl", '{"text": "three"}')
    assert data() != first
    put("c4.jsonl", '{"text": "one"}')
    with pytest.raises(ValueError, match="holds c4 twice, as c4 and as c4.jsonl"):
        data()


def test_the_parts_say_why_two_runs_differ(notebook: Path) -> None:
    a, b = (identity.parts(notebook, checked(parameters_of(notebook), {"share": s}, "p")) for s in (0.1, 0.2))
    assert [part for part in a if a[part] != b[part]] == ["parameters"]


def test_the_embedded_data_count_where_they_are_used(notebook: Path) -> None:
    assert set(identity.parts(notebook, {"share": 0.5})["data"]) == {"world", "tasks"}, "a lesson does not say"
    assert set(identity.parts(notebook, {"my_text": "c4", "tasks": "boolq, tiny"})["data"]) == {"my_text", "tasks"}
    assert set(identity.parts(notebook, {"my_text": "c4", "tasks": "destiny"})["data"]) == {"my_text"}


MODULE = '''"""A module."""

SCALE = 1 / 20  # of the scores


def scaled(x: float) -> float:
    """Scaled."""
    if x < 0:
        raise ValueError(f"{x} is below 0.")
    return SCALE * x
'''
NOTHING_ELSE = {
    "a comment": MODULE.replace("of the scores", "of all scores"),
    "the module's docstring": MODULE.replace("A module.", "A better module."),
    "no docstring at all": MODULE.replace('    """Scaled."""\n', ""),
    "layout": MODULE.replace("SCALE * x", "(\n        SCALE *   x\n    )"),
    "the words of an error": MODULE.replace("is below 0.", "must be at least 0."),
}
ANOTHER = {
    "a number": MODULE.replace("20", "10"),
    "a whole number for a number": MODULE.replace("20", "20.0"),
    "an operation": MODULE.replace("SCALE * x", "SCALE + x"),
    "what is refused": MODULE.replace("x < 0", "x <= 0"),
    "another error": MODULE.replace("ValueError", "TypeError"),
    "a default": MODULE.replace("x: float", "x: float = 0.0"),
    "a text that is no message": MODULE.replace("return", 'y = "sum"\n    return'),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that a test may change, in the place of this one."""
    for folder in (*package_code.NUMBERS, "course", "runs"):
        (tmp_path / "package" / folder).mkdir(parents=True)
        (tmp_path / "package" / folder / "module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(package_code, "PACKAGE", tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.parametrize("change", NOTHING_ELSE)
def test_what_changes_no_number_of_the_package_keeps_the_name(change: str, notebook: Path, package: Path) -> None:
    before = name(notebook)
    (package / "core" / "module.py").write_text(NOTHING_ELSE[change], encoding="utf-8")
    assert name(notebook) == before and MODULE != NOTHING_ELSE[change]


@pytest.mark.parametrize("change", ANOTHER)
def test_a_mend_of_the_package_makes_another_run(change: str, notebook: Path, package: Path) -> None:
    before, parts = name(notebook), identity.parts(notebook, {"my_text": "c4"})
    (package / "core" / "module.py").write_text(ANOTHER[change], encoding="utf-8")
    assert name(notebook) != before
    now = identity.parts(notebook, {"my_text": "c4"})
    assert [part for part in now if now[part] != parts[part]] == ["code"]
    (package / "core" / "module.py").write_text(MODULE, encoding="utf-8")
    assert name(notebook) == before, "the mend is taken back"


def test_a_new_module_and_another_name_of_one_count(notebook: Path, package: Path) -> None:
    before = name(notebook)
    (package / "scale" / "other.py").write_text("", encoding="utf-8")
    added = name(notebook)
    (package / "scale" / "other.py").rename(package / "scale" / "another.py")
    assert len({before, added, name(notebook)}) == 3


@pytest.mark.parametrize("stem", ["05_evaluation", "09_real_model", "B_your_own_model"])  # they name texts otherwise
def test_code_that_only_runs_and_records_counts_for_no_run_and_exercises_for_lessons(package: Path, stem: str) -> None:
    reproduce, lesson = (NOTEBOOKS / f"{stem}.ipynb" for stem in ("reproduce", stem))
    before = name(reproduce), name(lesson)
    (package / "runs" / "module.py").write_text(ANOTHER["a number"], encoding="utf-8")
    assert (name(reproduce), name(lesson)) == before
    (package / "course" / "module.py").write_text(ANOTHER["a number"], encoding="utf-8")
    assert name(reproduce) == before[0] and name(lesson) != before[1]


def test_a_lesson_is_named_by_what_its_text_says_and_reads_it_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = NOTEBOOKS / "02_importance.ipynb"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    before = name(lesson, text="mine.jsonl")
    assert before != name(lesson) and identity.absolute({"text": "mine.jsonl"}) == {
        "text": str(tmp_path / "mine.jsonl")
    }
    (tmp_path / "mine.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    assert name(lesson, text="mine.jsonl") != before


def test_another_protocol_makes_another_run(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name(notebook)
    monkeypatch.setattr(identity, "PROTOCOL", records.PROTOCOL + 1)
    assert name(notebook) != before


def test_the_hash_is_the_same_on_every_version_of_python() -> None:
    """Worked out with Python 3.11, 3.12 and 3.13: shards and clusters may have several."""
    source = 'def f(x, w=3):\n    return f"{x:<{w}}", None, [], {}, 1.0, b"", ...\n'
    assert package_code.meaning_sha256(source)[:16] == "90e8cc7d9bfb8ba7"
