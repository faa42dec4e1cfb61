"""Zero-shot tasks through lm-eval: the embedded six, any of lm-eval's own, or those of a local folder."""

import contextlib
import copy
import difflib
import io
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..files import DATA
from ..files.arguments import at_least_one
from ..files.atomic import reason
from ..files.batches import known_ids, words_of
from ..files.checkpoints import wrapping
from .intervals import Interval, proportion
from .intervals import accuracy as accuracy_of

CHANCE = {
    "tiny_tool": 1 / 2,
    "tiny_ending": 1 / 4,
    "tiny_owner": 1 / 2,
    "tiny_fact": 1 / 4,
    "tiny_chain": 1 / 4,
    "tiny_yesno": 1 / 2,
}
TASKS = tuple(CHANCE)
PAPER_TASKS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge")  # whose mean is AMP's metric
RUN_CODE = {"hf_evaluate", "unsafe_code", "trust_remote_code"}  # settings of a task file by which others' code is run
TRUSTED = "AMP_TUTORIAL_TASK_CODE"  # set: task files of a folder may run Python
DATA_TAGS = "str int float bool null seq map set omap pairs binary timestamp merge".split()  # of YAML itself
PLAIN = {"!", *(f"tag:yaml.org,2002:{kind}" for kind in DATA_TAGS)}
NAMED = re.compile(rb"^task:[ \t]*['\"]?([^\s'\"#]+)", re.MULTILINE)  # in a task file
NORM = " acc_norm"  # ending of what is measured with log-likelihoods divided by the characters of each answer
Request = tuple[tuple[str, str], list[int], list[int]]  # lm-eval's: a prompt and an answer, as texts and as tokens
Likely = tuple[float, bool]  # the log-likelihood of an answer, and whether it is what greedy decoding writes
Item = dict[str, Any]  # of a task: its "prompt", its "choices", and the index of the right "answer" among them


@dataclass(frozen=True)
class Measured:
    """An accuracy with its standard error over n items, and which of them were right."""

    value: float
    stderr: float
    n: int
    # Of each task one character an item, in the task's own order: "1" is right, "0" wrong. Empty where not known.
    items: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    @property
    def interval(self) -> Interval:
        """Its 95 % interval over items, see `intervals.accuracy`; without them Wilson's, as if all were of one task."""
        return accuracy_of([self.items]) if self.items else proportion(self.value * self.n, self.n)

    @property
    def low(self) -> float:
        return self.interval.low or 0.0

    @property
    def high(self) -> float:
        return self.interval.high or 0.0


class Accuracy(dict[str, Measured]):
    """Accuracy per task, and under "<task> acc_norm" that with normalised answers, where the task has it.

    `protocol` says how it was measured; it belongs into a record. `chance` is what guessing gives in each task: the
    mean of 1 / choices over its items, and nothing where answers are not chosen.
    """

    protocol: str = ""

    def __init__(self, *measured: Any, **more: Measured) -> None:
        super().__init__(*measured, **more)
        self.chance: dict[str, float] = {}

    @property
    def mean(self) -> Measured:
        """The unweighted mean over tasks, of plain accuracy; items of different tasks are independent."""
        parts = [measured for name, measured in self.items() if not name.endswith(NORM)]
        error = math.sqrt(sum(m.stderr**2 for m in parts)) / len(parts)
        items = {task: bits for m in parts for task, bits in m.items.items()} if all(m.items for m in parts) else {}
        return Measured(sum(m.value for m in parts) / len(parts), error, sum(m.n for m in parts), items)


def task_names(tasks: str | Iterable[str] | None) -> list[str]:
    """ "tiny" (also None), "paper", or names with commas, as a list."""
    if tasks is None or tasks == "tiny":
        return list(TASKS)
    if tasks == "paper":
        return list(PAPER_TASKS)
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("tasks=[] names no task; leave it out for the embedded ones.")
    return names


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Iterable[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
    change: Callable[[Item], Item] | None = None,
    folder: str | Path = "",
) -> Accuracy:
    """Zero-shot accuracy (highest summed log-likelihood) through lm-eval, with its standard errors.

    Each prompt is read once for all its answers (see `_answers`), which changes log-likelihoods by rounding alone.

    Every prompt begins as the tokenizer begins a text: with BOS, or with nothing where it has none, as GPT-2's and
    Phi's. For "acc_norm" lm-eval divides the log-likelihood of an answer by its number of characters
    (`lm_eval/api/task.py`, `completion_len`); by bytes it does so for a metric of its own, "acc_bytes".

    Args:
        tasks: "tiny" (the embedded six, also by default), "paper" (`PAPER_TASKS`), or names of tasks: embedded ones, of
            lm-eval, or of `folder`; a list, or with commas.
        limit: only the first items of each task. Items of the embedded tasks come in groups that share one list of
            choices, so take a multiple of 4 to keep them balanced.
        progress: let lm-eval show its progress bars.
        change: what is done to every item before it is asked, of embedded tasks; `robustness` perturbs prompts by it.
        folder: of task files of your own in lm-eval's format; paths in them are relative to it.

    Raises:
        ValueError: no task, an unknown one, one without accuracy, a group of tasks, or data that are not to be had; no
            model that predicts a next token, or tokens that it does not have.
    """
    if said := wrapping(model, measured=True):
        raise ValueError(said)
    at_least_one(batch_size=batch_size, limit=limit)
    names = task_names(tasks)
    from lm_eval import evaluate  # here, because lm-eval takes seconds to import and not every lesson needs it
    from lm_eval.models.huggingface import HFLM

    silent = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    with left_as_it_was(model), sandboxed(), silent:
        loaded = load_tasks(names, folder, change)
        own = _complete(tokenizer, model)
        wrapped = HFLM(pretrained=model, tokenizer=own, batch_size=batch_size, add_bos_token=True)
        wrapped._loglikelihood_tokens = partial(_answers, wrapped, wrapped._loglikelihood_tokens, batch_size, progress)
        # `evaluate`, not `simple_evaluate`: that one seeds all generators anew and asks git for a commit.
        found = evaluate(
            wrapped,
            loaded,
            limit=limit,
            bootstrap_iters=0,  # the standard error of a mean has a formula
            log_samples=True,
            verbosity="ERROR",
        )
    result = Accuracy()
    for task in names:
        row, n = found["results"][task], found["n-samples"][task]["effective"]
        if "acc,none" not in row:
            raise ValueError(f"Task {task!r} measures no accuracy (acc), but {', '.join(k for k in row if ',' in k)}.")
        for key, ending in (("acc,none", ""), ("acc_norm,none", NORM)):
            if key in row:
                error, items = math.sqrt(row[key] * (1 - row[key]) / max(1, n - 1)), _items(found["samples"][task], key)
                result[task + ending] = Measured(row[key], error, n, {task: items} if len(items) == n else {})
        twice = 2 if "acc_mutual_info,none" in row else 1  # that metric reads every choice without its prompt, too
        choices = [len(sample["resps"]) // twice for sample in found["samples"][task]]
        result.chance[task] = sum(1 / k for k in choices if k > 1) / len(choices)
    result.protocol = _protocol(tokenizer, limit)
    return result


@contextlib.contextmanager
def left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """lm-eval puts a model into eval mode and draws from Python's generator: afterwards both are as they were."""
    modes, drawn = {module: module.training for module in model.modules()}, random.getstate()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(drawn)


def _complete(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with what lm-eval would give itself: a token to pad by, and one to begin with.

    Neither is seen: prompts of one length are read together, and a text is begun as its tokenizer begins it.
    """
    own = copy.deepcopy(tokenizer)
    if own.pad_token_id is None or own.pad_token_id >= words_of(model):
        own.pad_token_id = own.eos_token_id if own.eos_token_id is not None else 0
    if own.eos_token_id is None:
        own.eos_token_id = own.pad_token_id
    return own


def _answers(
    harness: Any,
    one_by_one: Callable[..., list[Likely]],
    batch: int,
    progress: bool,
    requests: Sequence[Request],
    *args: Any,
    **kw: Any,
) -> list[Likely]:
    """What lm-eval's `HFLM._loglikelihood_tokens` gives, but each prompt is read once for all answers to it.

    Prompts of one length are read together, so that nothing is padded, and from their keys and values then the answers.
    Logarithms are of float32, whatever the model's dtype. What is too long for the model, which lm-eval truncates, and
    all where keys and values are not simply kept by layer, is left to lm-eval.
    """
    known_ids((prompt + answer for _, prompt, answer in requests), words_of(harness.model))
    plain, longest = kept_by_layer(harness.model), harness.max_length
    mine = [k for k, (_, prompt, answer) in enumerate(requests) if plain and len(prompt) + len(answer) <= longest]
    found: dict[int, Likely] = {}
    with tqdm(total=len(mine), desc="Answers", disable=not progress) as bar:
        for some in _together(requests, mine, batch):
            for k, likely in zip(some, _read_once(harness, [requests[k] for k in some]), strict=True):
                found[k] = likely
                harness.cache_hook.add_partial("loglikelihood", requests[k][0], likely)
            bar.update(len(some))
    rest = [k for k in range(len(requests)) if k not in found]
    if rest:
        found |= dict(zip(rest, one_by_one([requests[k] for k in rest], *args, **kw), strict=True))
    if any(math.isnan(likely) for likely, _ in found.values()):
        raise ValueError("The model's logits are NaN; check the checkpoint, and measure in float32 or bfloat16.")
    return [found[k] for k in range(len(requests))]


def kept_by_layer(model: PreTrainedModel) -> bool:
    """Whether all that a model keeps of what it read are keys and values, layer by layer.

    By the very types: a layer that keeps a recurrent state beside them is a subclass that hands on the keys alone.
    """
    return {type(layer) for layer in DynamicCache(config=model.config).layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }


def _together(requests: Sequence[Request], which: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Answers to prompts of one length, some `batch` at once, those to one prompt together; the longest come first."""
    order = sorted(which, key=lambda k: (-len(requests[k][1]), requests[k][1]))
    for _, alike in groupby(order, key=lambda k: len(requests[k][1])):
        some = list[int]()
        for _, answers in groupby(alike, key=lambda k: requests[k][1]):
            each = list(answers)
            if some and len(some) + len(each) > batch:
                yield some
                some = []
            some += each
        yield some


@torch.no_grad()
def _read_once(harness: Any, requests: Sequence[Request]) -> list[Likely]:
    """The log-likelihood of each answer, and whether each of its tokens is the likeliest; prompts are of one length."""
    prompts = list(dict.fromkeys(tuple(prompt) for _, prompt, _ in requests))
    number = {prompt: n for n, prompt in enumerate(prompts)}
    of = torch.tensor([number[tuple(prompt)] for _, prompt, _ in requests], device=harness.device)
    answers = [torch.tensor(answer, device=harness.device) for _, _, answer in requests]
    read = harness.model(torch.tensor(prompts, device=harness.device), use_cache=True, logits_to_keep=1)
    first = read.logits[:, -1:]
    rest = torch.nn.utils.rnn.pad_sequence([answer[:-1] for answer in answers], batch_first=True)
    more = None
    if rest.shape[1]:
        read.past_key_values.batch_select_indices(of)
        more = harness.model(rest, past_key_values=read.past_key_values).logits
    found = []
    for k, answer in enumerate(answers):
        logits = first[of[k]] if more is None else torch.cat([first[of[k]], more[k, : len(answer) - 1]])
        logits = logits.float()
        chosen = logits.gather(1, answer[:, None])[:, 0] - logits.logsumexp(1)
        found.append((float(chosen.sum()), bool((logits.argmax(1) == answer).all())))
    return found


def _protocol(tokenizer: PreTrainedTokenizerBase, limit: int | None) -> str:
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)  # as lm-eval encodes if add_bos_token is True
    first = " ".join(tokenizer.convert_ids_to_tokens(whole[: whole.index(plain[0])]))
    items = "all items" if limit is None else f"the first {limit} items"
    return (
        f"lm-eval {version('lm-eval')}, {items}, no examples, prompts opened by {first or 'nothing'}; acc_norm per "
        "character"
    )


def _items(samples: Sequence[dict[str, Any]], key: str) -> str:
    """The answers in the order of the items; empty if one is neither right nor wrong, or half right."""
    name, _, kind = key.partition(",")
    mine = [sample for sample in samples if name in sample and sample.get("filter", kind) == kind]
    marks = [sample[name] for sample in sorted(mine, key=lambda sample: sample["doc_id"])]
    return "".join(str(int(mark)) for mark in marks) if all(mark in (0, 1) for mark in marks) else ""


@cache
def _all() -> Any:
    """lm-eval's own index of some fifteen thousand names, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def known_tasks(names: list[str], folder: str | Path = "") -> Any:
    """lm-eval's manager of tasks, if it knows all that are not embedded; no data are read.

    Raises:
        ValueError: no such folder, one whose files run Python (`no_code`), an unknown task, or a group of tasks.
    """
    from lm_eval.tasks import TaskManager

    others = [name for name in names if name not in TASKS]
    if not others:
        return TaskManager(include_defaults=False)
    if folder and not Path(folder).is_dir():
        raise ValueError(f"No folder of tasks {str(folder)!r}.")
    path = str(Path(folder).resolve()) if folder else None
    if path and not os.environ.get(TRUSTED):
        no_code(Path(path))
    own = TaskManager(include_path=path, include_defaults=False) if path else None
    if own and set(others) <= set(own.all_tasks):
        manager = own  # lm-eval's own index takes seconds; it is not asked if the folder has all
    else:
        _in_some_file([name for name in others if not own or name not in own.all_tasks])
        manager = TaskManager(include_path=path) if path else _all()
    for name in others:
        if name not in manager.all_subtasks:
            if name in manager.all_tasks:
                raise ValueError(f"Task {name!r} is a group; name the tasks in it.")
            raise ValueError(_unknown(name, manager.all_subtasks))
    return manager


def _in_some_file(names: Sequence[str]) -> None:
    """Refuse a name with which nothing begins in lm-eval's files: to look there takes far less time than its index."""
    import lm_eval.tasks

    said = [path.read_bytes() for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")]
    for name in names:
        word = re.compile(rb"(?<![\w.-])%s(?![a-zA-Z0-9])" % re.escape(name.encode()))
        if not any(word.search(text) for text in said):
            raise ValueError(_unknown(name, {n.decode() for text in said for n in NAMED.findall(text)}))


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted({*TASKS, *known}), 3)
    meant = f"choose from {', '.join(TASKS)}, or from lm-eval's"
    if near:
        meant = f"the nearest {'are' if near[1:] else 'is'} {', '.join(near)}"
    return f"Unknown task {name[:40]!r}; {meant}."


def no_code(folder: Path) -> None:
    """Refuse task files that make lm-eval run Python, before they are read: a function of theirs, or another folder's.

    What they include is looked at as well, whatever it is called. (What stands in their templates runs in a sandbox.)

    Raises:
        ValueError: such a file, and how to say that it is trusted.
    """
    import yaml

    trust = f"if you trust it, set {TRUSTED}=1 in the environment"
    folder = folder.resolve()
    waiting = sorted(path for ending in ("*.yaml", "*.yml") for path in folder.rglob(ending))
    for path in waiting:  # which grows
        text = path.read_text(encoding="utf-8", errors="replace")
        try:  # tags and anchors as they are resolved, however they are written
            tree = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is no YAML ({reason(error)}); mend it, or take it out of {folder}.") from error
        for node in _nodes(tree):
            if node.tag not in PLAIN:
                raise ValueError(f"{path} would run Python of its own ({node.tag}); {trust}.")
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            for key, value in (pair for pair in pairs if isinstance(pair[0], yaml.ScalarNode)):
                said = [v.value.strip() for v in _nodes(value) if isinstance(v, yaml.ScalarNode)]
                if key.value in RUN_CODE and {word.lower() for word in said} - {"false", "no", "off", "null", "~", ""}:
                    raise ValueError(f"{path} would run code that comes with it ({key.value}: {said[0]}); {trust}.")
                if key.value == "metric" and any("/" in name or "\\" in name for name in said):
                    raise ValueError(f"{path} would run a metric of its own ({said[0]}); {trust}.")
                for other in said if key.value == "include" else ():
                    included = (path.parent / other).resolve()
                    if not included.is_relative_to(folder):
                        raise ValueError(f"{path} includes {other}, from outside {folder}; {trust}.")
                    if included.is_file() and included not in waiting:
                        waiting.append(included)


def _nodes(tree: Any) -> Iterator[Any]:
    """All nodes of a YAML tree, each once, however often an alias names it."""
    seen, waiting = set(), [tree] if tree is not None else []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        for child in node.value if isinstance(node.value, list) else ():
            waiting += child if isinstance(child, tuple) else [child]


class CodeRefusedError(ValueError):
    """A template of a task file reaches for Python."""


@contextlib.contextmanager
def sandboxed() -> Iterator[None]:
    """While it lasts, templates of task files reach no Python, unless the environment says that they are trusted."""
    from jinja2.sandbox import SandboxedEnvironment, SecurityError
    from lm_eval import utils

    own = utils.env
    if not os.environ.get(TRUSTED):
        utils.env = SandboxedEnvironment(
            loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline
        )
        utils.env.filters.update(own.filters)
    try:
        yield
    except SecurityError as error:
        said = reason(error)
        raise CodeRefusedError(
            f"A template of a task would run Python of its own ({said}); if you trust it, set {TRUSTED}=1 in the "
            "environment."
        ) from error
    finally:
        utils.env = own


def load_tasks(
    tasks: str | Iterable[str] | None, folder: str | Path = "", change: Callable[[Item], Item] | None = None
) -> dict[str, Any]:
    """Tasks with their data, as lm-eval's `evaluate` takes them; args and errors as of `accuracy`."""
    names = task_names(tasks)
    tiny, others = [n for n in names if n in TASKS], [n for n in names if n not in TASKS]
    if others and change is not None:
        raise ValueError(f"Items can be changed of {', '.join(TASKS)} only, not of {others[0]!r}.")
    configs = [_embedded(task, change) for task in tiny]
    manager = known_tasks(others, folder)
    if not others:
        return dict(manager.load(configs))
    try:
        with contextlib.chdir(folder or "."), sandboxed():  # paths in a task file are relative to it
            return dict(manager.load([*configs, *others]))
    except CodeRefusedError:
        raise
    except Exception as error:  # whatever the libraries raise: offline, gone, a damaged file
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        fetch = f"from lm_eval.tasks import TaskManager; TaskManager().load({others})"
        raise ValueError(
            f"The data of {', '.join(others)} are not to be had ({why}). Where there is a network, this puts them into "
            f'the cache (HF_HOME), which can be copied here: python -c "{fetch}"'
        ) from error


def _embedded(task: str, change: Callable[[Item], Item] | None) -> dict[str, Any]:
    import yaml
    from datasets import Dataset

    config = yaml.safe_load((DATA / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
    # The file names its data relative to the repository; resolve it, so that any folder will do.
    config["dataset_kwargs"]["data_files"]["test"] = str(DATA / "tasks" / f"{task}.jsonl")
    config["num_fewshot"] = 0
    if change is not None:
        config["process_docs"] = lambda items: Dataset.from_list([change(item) for item in items])
    return dict(config)
