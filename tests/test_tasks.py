"""Tasks by lm-eval name and from local folders, and what is said of those that cannot be had."""

import json
import random
import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from helpers import Shape, byte_tokenizer, tiny
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PreTrainedTokenizerFast

import amp_tutorial as amp
from amp_tutorial.measure import tasks
from amp_tutorial.measure.tasks import NORM, Likely, Request, _answers, _together, kept_by_layer, task_names

ITEMS: list[dict[str, Any]] = [
    {"question": f"The colour of number {i} is", "choices": ["red", "very light blue"], "answer": i % 2}
    for i in range(8)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks in lm-eval's own format; the path of the data is relative to the folder."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)), encoding="utf-8")
    task = dict(
        task="colours",
        dataset_path="json",
        dataset_kwargs={"data_files": {"test": "items.jsonl"}},
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    )
    (tmp_path / "tasks" / "colours.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return tmp_path / "tasks"


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_only_when_asked(folder: Path, progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook it would be a widget, which stays in no stored output."""
    seen: list[bool] = []
    bar = tasks.tqdm

    def watched(**settings: Any) -> Any:
        seen.append(settings["disable"])
        return bar(**settings)

    monkeypatch.setattr(tasks, "tqdm", watched)
    amp.accuracy(tiny(), byte_tokenizer(), "colours", folder=folder, progress=progress)
    assert seen == [not progress]


def test_names_in_words_and_lists() -> None:
    assert task_names(None) == task_names("tiny") == list(amp.TASKS)
    assert task_names("paper") == ["piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"]
    assert task_names("piqa, tiny_tool") == ["piqa", "tiny_tool"] == task_names(["piqa", "tiny_tool"])


def test_a_task_of_a_local_folder_is_measured_beside_an_embedded_one(folder: Path) -> None:
    model, tokenizer = tiny(), opening()
    found = amp.accuracy(model, tokenizer, "colours,tiny_tool", limit=8, folder=folder)
    assert list(found) == ["colours", f"colours{NORM}", "tiny_tool"]
    assert found["colours"].n == 8 and found.chance == {"colours": 1 / 2, "tiny_tool": amp.CHANCE["tiny_tool"]}
    assert found.mean.value == pytest.approx((found["colours"].value + found["tiny_tool"].value) / 2), "plain accuracy"
    right = norm = 0
    for item in ITEMS:
        sums = []
        for choice in item["choices"]:
            given = [0, *tokenizer(str(item["question"]), add_special_tokens=False).input_ids]
            ids = [*given, *tokenizer(f" {choice}", add_special_tokens=False).input_ids]
            scores = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            sums.append(sum(float(scores[i - 1, ids[i]]) for i in range(len(given), len(ids))))
        right += max((0, 1), key=lambda k: sums[k]) == item["answer"]
        norm += max((0, 1), key=lambda k: sums[k] / len(item["choices"][k])) == item["answer"]
    assert (found["colours"].value, found[f"colours{NORM}"].value) == (right / 8, norm / 8)


def test_guessing_gives_nothing_where_answers_are_not_chosen_and_counts_no_choice_twice(folder: Path) -> None:
    task = yaml.safe_load((folder / "colours.yaml").read_text(encoding="utf-8"))
    both = dict(task, task="twice", metric_list=[{"metric": m} for m in ("acc", "acc_mutual_info")])
    last = dict(task, task="last", output_type="loglikelihood", doc_to_target=" red", metric_list=[{"metric": "acc"}])
    del last["doc_to_choice"]
    for made in (both, last):
        (folder / f"{made['task']}.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    assert amp.accuracy(tiny(), opening(), "twice,last", folder=folder).chance == {"twice": 1 / 2, "last": 0}


def test_normalised_answers_are_divided_by_characters_and_not_by_bytes(folder: Path) -> None:
    """A letter of two bytes is two tokens here, so that the two ways of counting choose otherwise."""
    items: list[dict[str, Any]] = [
        {"question": f"The colour of number {i} is", "choices": ["dark green", "ééééé"], "answer": 0} for i in range(8)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    model, tokenizer = tiny(), opening()
    right = {len: 0, _bytes: 0}
    for item in items:
        sums = []
        for choice in item["choices"]:
            given = [0, *tokenizer(str(item["question"]), add_special_tokens=False).input_ids]
            ids = [*given, *tokenizer(f" {choice}", add_special_tokens=False).input_ids]
            scores = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            sums.append(sum(float(scores[i - 1, ids[i]]) for i in range(len(given), len(ids))))
        for count in right:
            right[count] += max((0, 1), key=lambda k: sums[k] / count(item["choices"][k])) == item["answer"]
    found = amp.accuracy(model, tokenizer, "colours", folder=folder)
    assert right[len] != right[_bytes] and found[f"colours{NORM}"].value == right[len] / 8


LIKE = (Shape(), Shape("gpt2"), Shape("phi", bias=True), Shape("opt"), Shape("gemma2"), Shape("mixtral"))


@pytest.mark.parametrize("shape", LIKE, ids=lambda shape: shape.family)
def test_a_prompt_read_once_gives_what_each_answer_with_its_prompt_gives(shape: Shape) -> None:
    """Answers of one token and of several, prompts of only one, and some longer than a sliding window."""
    model, tokenizer = tiny(shape), opening()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, add_bos_token=True, max_length=70)
    asked = [
        ((p, a), [0, *tokenizer.encode(p, add_special_tokens=False)], tokenizer.encode(a, add_special_tokens=False))
        for p, answers in (
            ("Ben has", (" it", "s", " a red kite", " it")),  # one of them twice
            ("Ada has", ("!", " nothing")),
            ("The mill is old, so it is", (" a", " shut")),
            ("It", (" is",)),
            ("Ben goes to the old mill, where " * 2, (" Ada is", "it")),  # too long with one of them
        )
        for a in answers
    ]
    left, whole = list[Request](), harness._loglikelihood_tokens

    def one_by_one(rest: list[Request], **how: Any) -> list[Likely]:
        left.extend(rest)
        return list(whole(rest, **how))

    plain = whole(asked, disable_tqdm=True)
    found = _answers(harness, one_by_one, 3, False, asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in plain]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in plain], rel=1e-4)
    assert left == asked[-2:-1], "lm-eval truncates it"


def test_what_keeps_a_state_beside_keys_and_values_is_left_to_lm_eval() -> None:
    assert all(kept_by_layer(tiny(shape)) for shape in LIKE)
    mixed = SimpleNamespace(config=AutoConfig.for_model("falcon_h1", num_hidden_layers=1))
    assert not kept_by_layer(cast(Any, mixed)), "its layers are of a subclass of those that keep keys and values alone"


def test_a_prompt_is_read_once_for_all_its_answers_and_those_of_one_length_together() -> None:
    read = list[tuple[int, ...]]()
    model, tokenizer = tiny(), opening()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, add_bos_token=True)
    prompts = [[0, 5, 6], [0, 5, 7], [0, 5, 6, 7]]
    asked = [(("", ""), prompt, [9, k]) for k in range(3) for prompt in prompts]
    with model.register_forward_pre_hook(
        lambda _, args, kw: read.append((kw.get("input_ids", *args)).shape), with_kwargs=True
    ):
        _answers(harness, harness._loglikelihood_tokens, 8, False, asked)
    assert read == [(1, 4), (3, 1), (2, 3), (6, 1)], "the longest come first"
    many = list(_together(asked, range(9), 4))
    assert many == [[2, 5, 8], [0, 3, 6], [1, 4, 7]], "answers to one prompt are not parted"


PER = "acc_norm per character"


def opening() -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with BOS."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def _bytes(text: str) -> int:
    return len(text.encode())


def test_the_protocol_says_what_opens_a_prompt(folder: Path) -> None:
    said = [amp.accuracy(tiny(), t, "colours", limit=4, folder=folder).protocol for t in (opening(), byte_tokenizer())]
    assert said[0] == f"lm-eval {version('lm-eval')}, the first 4 items, no examples, prompts opened by <s>; " + PER
    assert said[1] == f"lm-eval {version('lm-eval')}, the first 4 items, no examples, prompts opened by nothing; " + PER


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("process_docs: !function code.run", r"colours.yaml would run Python of its own \(!function\)"),
        ("include: ../elsewhere.yaml", r"colours.yaml includes ../elsewhere.yaml, from outside"),
        ("include: '/elsewhere.yaml'", "includes /elsewhere.yaml, from outside"),
        ("metadata: {x: &a ../elsewhere.yaml}\ninclude: *a", "includes ../elsewhere.yaml, from outside"),
        ("include: hidden.txt", r"hidden.txt would run Python of its own \(!function\)"),
        ("include: hidden.txt.YAML", r"hidden.txt.YAML would run Python of its own"),
        ("metric_list: [{metric: ./mine, hf_evaluate: true}]", "would run"),
        ("metric_list: [{metric: ./mine}]", r"would run a metric of its own \(./mine\)"),
        ("dataset_kwargs: {trust_remote_code: true}", r"would run code that comes with it \(trust_remote_code: true\)"),
        ("? [a, b]\n: {unsafe_code: yes}", r"would run code that comes with it \(unsafe_code: yes\)"),
        ("unsafe_code: yes", r"would run code that comes with it \(unsafe_code: yes\)"),
    ],
)
def test_files_of_tasks_run_no_python_unless_that_is_said(
    folder: Path, line: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\ndef run(docs):\n    return docs\n")
    (folder.parent / "elsewhere.yaml").write_text("process_docs: !function tasks/code.run\n")
    for name in ("hidden.txt", "hidden.txt.YAML"):
        (folder / name).write_text("process_docs: !function code.run\n")
    path = folder / "colours.yaml"
    plain = path.read_text(encoding="utf-8")
    if ("dataset_kwargs" in line or "metric_list" in line) and (key := line.partition(":")[0]) in plain:
        plain = re.sub(rf"^{key}:.*\n(?:[ -].*\n)*", "", plain, flags=re.MULTILINE)
    path.write_text(f"{plain}# !function in a comment is none\ninclude: other.yaml\n", encoding="utf-8")
    tasks.no_code(folder) if "hidden" not in line else None
    path.write_text(f"{plain}{line}\n", encoding="utf-8")
    for call in (
        lambda: amp.accuracy(tiny(), byte_tokenizer(), "colours", folder=folder),
        lambda: tasks.known_tasks(["colours"], folder),
    ):
        with pytest.raises(ValueError, match=f"{words}.*AMP_TUTORIAL_TASK_CODE=1 in the environment.$"):
            call()
    assert not (folder / "ran").exists()
    if "!function" in line:
        monkeypatch.setenv("AMP_TUTORIAL_TASK_CODE", "1")
        assert amp.accuracy(tiny(), byte_tokenizer(), "colours", folder=folder)["colours"].n == 8
        assert (folder / "ran").exists()


@pytest.mark.slow
def test_templates_of_task_files_run_in_a_sandbox(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = folder / "colours.yaml", folder / "ran"
    text = path.read_text(encoding="utf-8")
    attack = "{{ cycler.__init__.__globals__.os.system('touch " + str(ran) + "') }}"
    path.write_text(re.sub(r"^doc_to_text:.*$", f'doc_to_text: "{attack}"', text, flags=re.MULTILINE), encoding="utf-8")
    with pytest.raises(ValueError, match="A template of a task would run Python of its own .*if you trust it"):
        amp.accuracy(tiny(), byte_tokenizer(), "colours", folder=folder)
    assert not ran.exists()
    monkeypatch.setenv("AMP_TUTORIAL_TASK_CODE", "1")
    amp.accuracy(tiny(), byte_tokenizer(), "colours", limit=1, folder=folder)
    assert ran.exists()


def test_measuring_changes_neither_tokenizer_nor_model_nor_chance(folder: Path) -> None:
    for lacking in (
        {"pad_token": None},
        {"pad_token": None, "eos_token": None},
        dict.fromkeys(("pad_token", "eos_token", "bos_token")),
    ):
        model, tokenizer = tiny().train(), byte_tokenizer()
        for name, value in lacking.items():
            setattr(tokenizer, name, value)
        model.model.layers[0].eval()
        before = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, len(tokenizer)]
        modes, chance = [module.training for module in model.modules()], random.getstate()
        found = amp.accuracy(model, tokenizer, "colours", limit=4, folder=folder)
        assert found["colours"].n == 4
        assert [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, len(tokenizer)] == before
        assert [module.training for module in model.modules()] == modes and random.getstate() == chance


def test_unknown_groups_and_unreachable_tasks_are_one_sentence(folder: Path) -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    for asked, where, match in (
        ("piqua", "", r"Unknown task 'piqua'; the nearest are .*piqa"),
        ("mmlu", "", "Task 'mmlu' is a group; name the tasks in it"),
        ("piqa", "", r"The data of piqa are not to be had .*baber/piqa.*TaskManager\(\)\.load\(\['piqa'\]\)"),
        ("colours", str(folder / "gone"), "No folder of tasks"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            amp.accuracy(model, tokenizer, asked, folder=where)
        assert "\n" not in str(caught.value)
