"""Rows with a text, out of one file, a saved data set, or what is held in memory. What is wrong is said with its place.

Text is UTF-8, with or without a byte-order mark. A line of JSON ends at a line feed, a carriage return or both, as JSON
Lines has it, and not at the other characters that Unicode counts as line ends and that may stand inside a string.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from .atomic import reason

Row = dict[str, str]  # "text", and where they are known "prompt" and "response", of Alpaca also the columns it came in
JSON_LINES = (".jsonl", ".jsonlines", ".ndjson")
ZIPPED = (".txt", ".json", *JSON_LINES)
ENDINGS = (*ZIPPED, *(f"{ending}.gz" for ending in ZIPPED), ".parquet")
TABLES = {".csv": "", ".tsv": ', sep="\\t"'}  # and what the reader of `datasets` has to be told
NEED = (
    "'text', or 'prompt' and 'response' or 'completion', or 'messages' or 'conversations', or 'sentence', or "
    "'instruction' and 'output'"
)
CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # of OpenAI and of ShareGPT


def ending(path: Path) -> str:
    """The ending that says what a file is, in small letters: ".txt", ".jsonl", ".json.gz", …"""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def of_file(path: Path) -> Iterator[Row]:
    """The rows of a file: Parquet, a list of JSON objects, JSON Lines, or one text, by its ending.

    Raises:
        ValueError: a table, a damaged file, text that is not UTF-8, JSON that is broken or has no known columns.
    """
    kind = ending(path)
    plain = kind.removesuffix(".gz")
    if plain in TABLES:
        how = f'load_dataset("csv", data_files={path.name!r}, split="train"{TABLES[plain]})'
        raise ValueError(
            f"{path} is a table, which is not read here; convert it once, with its text in a column 'text': "
            f"datasets.{how}.to_json({path.name.split('.')[0] + '.jsonl'!r})."
        )
    if kind == ".parquet":
        from datasets import load_dataset

        options: dict[str, Any] = dict(data_files=str(path), split="train", streaming=True)  # so that nothing is cached
        yield from of_library(path, lambda: load_dataset("parquet", **options))
    elif plain == ".json" and _first(path) == "[":
        found = _parsed(_whole(path), str(path), lines=True)
        yield from (row(one, f"{path}, row {i}") for i, one in enumerate(found))
    elif plain == ".json" and (whole := _one_object(path)) is not None:
        yield row(whole, str(path))
    elif plain in (".json", *JSON_LINES):
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield row(_parsed(line, where), where)
    else:
        yield {"text": _whole(path)}


def _one_object(path: Path) -> Any:
    """The one object that a file holds over several lines; None if its first line is one by itself, or none begins."""
    first = next((line for line in _lines(path) if line.strip()), "")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return _parsed(_whole(path), str(path), lines=True) if first.strip() in ("{", "") else None
    return None


def of_library(path: Path, load: Any) -> Iterator[Row]:
    """The rows of what a function of `datasets` loads.

    Raises:
        ValueError: it fails, whatever it raises; or a row without the known columns.
    """

    def loaded() -> Iterator[Any]:
        try:
            yield from load()
        except Exception as error:  # of pyarrow, of datasets, of the system
            raise ValueError(f"{path} is damaged or no data set ({reason(error)}); fetch or save it again.") from error

    yield from (row(one, f"{path}, row {i}") for i, one in enumerate(loaded()))


def of_memory(given: Any) -> Iterator[Row]:
    """The rows of a list, a generator, or a `datasets.Dataset`: strings, or mappings with the known columns.

    Raises:
        ValueError: neither of them, or a mapping of splits or columns where rows are needed.
    """
    if isinstance(given, Mapping) or hasattr(given, "iloc"):
        raise ValueError(
            f"A {type(given).__name__} is not a list of texts: give one of its splits or columns, such as "
            f"source[{next(iter(given), 'train')!r}]."
        )
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise ValueError(
            f"A text source is a name, a path, or a list of strings or of rows with {NEED}; not {_kind(given)}."
        )
    for i, one in enumerate(given):
        where = f"item {i} of the source"
        if isinstance(one, str):
            yield {"text": _text(one, where)}
        elif isinstance(one, Mapping):
            yield row(one, where)
        else:
            raise ValueError(f"{where[0].upper()}{where[1:]} must be a string or a row of columns, not {_kind(one)}.")


def row(found: Any, where: str) -> Row:
    """The columns that are known: text; sentence (PTB); prompt, response; instruction, input, output (Alpaca); chats.

    An Alpaca row's text is its prompt alone: instruction and input, a line each. That is what AMP calibrates on. Of a
    chat the last turn is the response and what was said before, a line each, the prompt; a chat template is not used.

    Raises:
        ValueError: no such columns, or one that is not text.
    """

    def text(*names: str) -> Row:
        return {name: _text(found[name], where, name) for name in names if found.get(name) is not None}

    has = {name for name, value in found.items() if value is not None} if isinstance(found, Mapping) else set()
    if {"instruction", "output"} <= has:
        columns = text("instruction", "input", "output")
        prompt = "\n".join(filter(None, (columns["instruction"], columns.get("input"))))
        return {"text": prompt, "prompt": prompt, "response": columns.pop("output")} | columns
    if "text" in has:
        return text("text", "prompt", "response")
    if "sentence" in has:
        return {"text": text("sentence")["sentence"]}
    for answer in ("response", "completion"):
        if {"prompt", answer} <= has:
            prompt, response = (
                "\n".join(_chat(found[name], f"{where}: {name!r}", CHATS["messages"]))
                if isinstance(found[name], list)
                else text(name)[name]
                for name in ("prompt", answer)
            )
            return {"text": f"{prompt} {response}", "prompt": prompt, "response": response}
    for name, keys in CHATS.items():
        if name in has:
            *before, response = _chat(found[name], f"{where}: {name!r}", keys)
            prompt = "\n".join(before)
            return {"text": f"{prompt} {response}".strip(), "prompt": prompt, "response": response}
    raise ValueError(f"{where}: need a JSON object with {NEED}.")


def _chat(turns: Any, where: str, keys: tuple[str, str]) -> list[str]:
    """What was said in each turn of a chat; of whom, only that it is said matters."""
    if not (
        isinstance(turns, list) and turns and all(isinstance(turn, Mapping) and {*keys} <= {*turn} for turn in turns)
    ):
        raise ValueError(f"{where} must be a list of turns, each with {keys[0]!r} and {keys[1]!r}.")
    return [_text(turn[keys[1]], where, keys[1]) for turn in turns]


def _text(value: Any, where: str, name: str = "") -> str:
    said = f"{where}: {name!r}" if name else where
    if not isinstance(value, str):
        raise ValueError(f"{said} must be a string, not {_kind(value)}.")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{said} holds half a surrogate pair at character {error.start}, which no text has; mend or drop it."
        ) from error
    return str(value)


def _kind(value: Any) -> str:
    return "null (None)" if value is None else type(value).__name__


def _parsed(content: str, where: str, lines: bool = False) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if lines else ""
        column = error.colno if lines else min(error.pos, len(content.rstrip())) + 1  # not on the line after
        raise ValueError(f"{where}{line}: this JSON is broken at column {column}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # numbers too long for Python, brackets too deep
        raise ValueError(f"{where}: this JSON can't be read: {reason(error)}.") from error


def _opened(path: Path) -> TextIOWrapper:
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    # newline=None: lines end at \n, \r\n and \r, and nowhere else.
    return TextIOWrapper(opened(path, "rb"), encoding="utf-8-sig", newline=None)


def _lines(path: Path) -> Iterator[str]:
    whole = 0
    try:
        with _opened(path) as file:
            for line in file:
                yield line
                whole += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (after line {whole}); convert it first.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(_unread(path, error)) from error


def _first(path: Path) -> str:
    """The first character that is not a space."""
    return next((line.lstrip()[0] for line in _lines(path) if line.strip()), "")


def _whole(path: Path) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(_unread(path, error)) from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from error


def _unread(path: Path, error: BaseException) -> str:
    if path.suffix.lower() == ".gz":
        return f"{path} is not a whole gzip file ({reason(error)}); fetch it again."
    return f"{path} can't be read: {reason(error)}."
