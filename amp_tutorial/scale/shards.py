"""Write a stock checkpoint part by part, one file each, with an index: no more than a part is ever held."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..core.families import older_names_of
from ..files.atomic import write_json
from ..files.older_names import add_older_names
from .checkpoint_on_disk import INDEX, WEIGHTS, blank


class Shards:
    """A checkpoint of so many files, in a folder that nobody reads yet."""

    def __init__(self, small: PreTrainedModel, folder: Path, count: int) -> None:
        self.small, self.folder, self.count = small, folder, count
        self.where: dict[str, str] = {}  # the file of each tensor
        self.written, self.total = 0, 0  # files, bytes

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Write a part, with the names that the small model has for its tensors."""
        self.written += 1
        shard = self.folder / f"model-{self.written:05}-of-{self.count:05}.safetensors"
        self.small.save_pretrained(self.folder / "part", state_dict=tensors)  # under the names that are stored
        (self.folder / "part" / WEIGHTS).replace(shard)
        stored = blank(shard)
        self.where |= dict.fromkeys(stored, shard.name)
        self.total += sum(tensor.nbytes for tensor in stored.values())

    def finish(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write all else. What makes it a model for a reader, config.json, is moved to its place last."""
        index = {"metadata": {"total_size": self.total}, "weight_map": self.where}
        write_json(self.folder / INDEX, index, indent=2, sort_keys=True)
        part = self.folder / "part"
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        add_older_names(part, older_names_of(self.small.config))
        for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(self.folder / path.name)
        part.rmdir()


@contextmanager
def without_bars() -> Iterator[None]:
    """Silence transformers' own bar for every load and save: here there are two for each layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
