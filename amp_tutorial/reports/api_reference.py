"""The reference of all public names, from the source: signatures as they are written, docstrings as Markdown."""

import ast
import re
import textwrap
from functools import cache

import amp_tutorial as amp

from ..files import PACKAGE
from .architecture import floors, on, public

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef | ast.Assign | ast.AnnAssign
ENTRIES = re.compile(r"^([\w*, ]+): (.*)$")  # a line of Args, Raises or Warns


@cache
def _source(module: str) -> tuple[ast.Module, list[str]]:
    path = PACKAGE.joinpath(*module.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines()


def definition(module: str, name: str) -> tuple[str, Definition]:
    """The module in which a name is defined, and its node; a module that only passes it on is followed.

    Raises:
        ValueError: the module neither defines nor imports it.
    """
    found: Definition | None = None
    for node in _source(module)[0].body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
        if name in named and isinstance(node, Definition):
            found = node  # the last: overloads come before it
        elif isinstance(node, ast.ImportFrom) and node.level and name in {a.asname or a.name for a in node.names}:
            above = module.split(".")[: 2 - node.level] if "." in module else [module][: 2 - node.level]
            return definition(".".join([*above, *([node.module] if node.module else [])]), name)
    if found is None:
        raise ValueError(f"{module} neither defines nor imports {name}.")
    return module, found


def _lines(module: str, first: int, last: int) -> str:
    return textwrap.dedent("\n".join(_source(module)[1][first - 1 : last]))


def signature(module: str, node: Function) -> str:
    """The head of a function as it stands in the file, without decorators, self and the colon that ends it."""
    head = _lines(module, node.lineno, node.body[0].lineno - 1).rstrip().removesuffix(":")
    if any(ast.unparse(d) in ("property", "cached_property") for d in node.decorator_list):
        return head.replace("(self) ->", ":", 1)
    return re.sub(r"\((self|cls)(,\s*)?", "(", head, count=1)


def fields(module: str, node: ast.ClassDef) -> str:
    """The head of a class with its public fields and their comments."""
    mine = [n for n in node.body if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    body = "\n".join(_lines(module, n.lineno, n.end_lineno or n.lineno) for n in mine)
    return f"class {node.name}{bases}:" + (f"\n{textwrap.indent(body, '    ')}" if body else " ...")


def prose(docstring: str) -> str:
    """A docstring in Markdown: its sections Args, Raises and Warns become lists."""
    docstring = re.sub(r"(`[^`]*`)|<(?=\w)", lambda found: found[1] or r"\<", docstring)  # no markup of HTML
    parts = re.split(r"^(Args|Raises|Returns|Warns|Example):\n", docstring, flags=re.MULTILINE)
    out = [parts[0].strip()]
    for title, block in zip(parts[1::2], parts[2::2], strict=True):
        inside = re.match(r"(?:(?: .*)?\n)*(?: .*)?", block)
        section, rest = textwrap.dedent(inside[0] if inside else "").strip("\n"), block[inside.end() if inside else 0 :]
        if title == "Example":
            out.append(f"Example:\n\n{section}")
        elif title == "Returns":
            out.append(f"Returns: {section}")
        else:
            entries = re.sub(r"\n +", " ", section).splitlines()
            said = [ENTRIES.sub(r"- `\1`: \2", line) for line in entries if line]
            out.append("\n".join([f"{title}:", "", *said]))
        out += [rest.strip()] if rest.strip() else []
    return "\n\n".join(out)


OLDER = "older_calls"  # where the names stand that go with the next version


def entry(name: str) -> list[str]:
    """One public name: a heading, where it is, how it is called or what it holds, and what its docstring says."""
    module, node = definition(public()[name], name)
    stem = f"{PACKAGE.name}/{module.replace('.', '/')}"
    path = f"{stem}/__init__.py" if (PACKAGE.parent / stem).is_dir() else f"{stem}.py"
    lines = [f"### amp.{name}", f"[{path}](../{path})", ""]
    if isinstance(node, Function):
        return [*lines, "```python", signature(module, node), "```", prose(ast.get_docstring(node) or ""), ""]
    if not isinstance(node, ast.ClassDef):
        value, comment = getattr(amp, name), _lines(module, node.lineno, node.lineno).partition("  # ")[2]
        keys = f"`{'`, `'.join(map(str, value))}`" if isinstance(value, dict | tuple) else ""
        return [*lines, ": ".join(filter(None, (keys, comment))), ""]
    lines += ["```python", fields(module, node), "```", prose(ast.get_docstring(node) or ""), ""]
    for inner in node.body:
        if isinstance(inner, Function) and not inner.name.startswith("_") and (said := ast.get_docstring(inner)):
            lines += ["```python", f"{name}.{signature(module, inner).removeprefix('def ')}", "```", prose(said), ""]
    return lines


def reference() -> str:
    """All public names in Markdown, folder by folder, with an index on top."""
    index, body, anchors = ["| folder | names |", "|---|---|"], list[str](), list[str]()
    places = {name: definition(module, name)[0] for name, module in public().items()}
    for floor in floors():
        if names := sorted((name for name in places if places[name].split(".")[0] == floor), key=str.lower):
            links = []
            for name in names:
                anchor = f"amp{name.lower()}"  # as GitHub makes it of a heading; of equal ones the second ends in -1
                links += [f"[{name}](#{anchor}{f'-{n}' if (n := anchors.count(anchor)) else ''})"]
                anchors += [anchor]
            index += [f"| {floor} | {', '.join(links)} |"]
            body += [f"## {floor}", on(floor)[0], "", *(line for name in names for line in entry(name))]
    if old := [f"`{name}`" for name in sorted(places) if places[name] == OLDER]:
        body += ["## Older names", f"{', '.join(old)}: names of version 0.1; each says once what it is called now."]
    return "\n".join([*index, "", *body]).rstrip()
