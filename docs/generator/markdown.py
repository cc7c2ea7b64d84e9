"""Pieces of Markdown, and docstrings taken apart."""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

COMMENTS = {".md": ("<!-- ", " -->"), ".yml": ("# ", "")}
NOTE = "<!-- Written by docs/generate.py; edit the docstrings that it comes from. -->"


def fill(text: str, name: str, content: str, *, kind: str = ".md") -> str:
    """A hand-written file with its generated block `name` replaced; the block lies between two comments."""
    opening, closing = COMMENTS[kind]
    begin, end = f"{opening}{name}: written by docs/generate.py{closing}\n", f"{opening}/{name}{closing}"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"the block '{name}' is not there: {begin.strip()} ... {end}")
    # Blank lines around it: without them Markdown takes the comment for a part of what it holds.
    blank = "\n" if kind == ".md" else ""
    # What stands before the end on its line is its indentation.
    indentation = re.search(r"[ \t]*$", rest.partition(end)[0])
    content = f"{content}\n" if content else ""
    return f"{before}{begin}{blank}{content}{blank}{indentation[0] if indentation else ''}{end}{after}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def prose(text: str) -> str:
    """A docstring's text on one line: code stays code, arXiv ids become links, all else stands as it is."""
    parts = " ".join(text.split()).split("`")
    for index in range(0, len(parts), 2):
        part = re.sub(r"([*|<\[\]])|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", parts[index])
        parts[index] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", part)
    return "`".join(parts)


def fenced(text: str, language: str = "text") -> str:
    """Text as it is; the fence is longer than any that it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([*([", ".join(quoted[:-1])] if len(quoted) > 1 else []), *quoted[-1:]])


def page(*parts: str) -> str:
    """A generated page of paragraphs."""
    return "\n\n".join([parts[0], NOTE, *filter(None, parts[1:])]) + "\n"


class Docstring(NamedTuple):
    """A docstring taken apart."""

    summary: str
    """Its first paragraph."""
    body: tuple[str, ...]
    """Further paragraphs."""
    sections: dict[str, dict[str, str]]
    """Of `Args` and `Raises`: name to what is said of it."""


def docstring(of: object) -> Docstring:
    """The docstring of a function or class; empty where it has none of its own."""
    own = getattr(of, "__doc__", None)
    summary, *rest = re.split(r"\n\s*\n", inspect.cleandoc(own)) if own else [""]
    body, sections = [], {}
    for paragraph in rest:
        title, _, lines = paragraph.partition("\n")
        if title in ("Args:", "Raises:"):
            entries = re.split(r"\n(?=\S)", textwrap.dedent(lines))
            pairs = (entry.partition(":") for entry in entries)
            sections[title[:-1]] = {name.strip(): text.strip() for name, _, text in pairs}
        else:
            body.append(paragraph)
    return Docstring(summary, tuple(body), sections)


class FieldDoc(NamedTuple):
    """A field of a class that is no pydantic model."""

    kind: str
    text: str
    """The docstring under it."""


def fields_of(cls: type) -> dict[str, FieldDoc]:
    """The fields of a dataclass or named tuple."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = following.value if isinstance(following, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
            found[statement.target.id] = FieldDoc(ast.unparse(statement.annotation), text)
    return found


def signature(function: object) -> str:
    """A function's signature as it is written, without `self`."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body  # type: ignore[arg-type]
    assert isinstance(node, ast.FunctionDef)
    node.args.args = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    # Every parameter has a type, and then its default stands between spaces.
    return f"({ast.unparse(node.args).replace('=', ' = ')}){returns}".replace("'", "")
