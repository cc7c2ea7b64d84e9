"""The reference: the command line, results.json, the study file, the Python API. All of it out of the code."""

import inspect
import json
import re
from importlib.resources import files
from typing import Any

import typer
from pydantic import BaseModel

import finetrap
from finetrap.cli import app
from finetrap.config import Study
from finetrap.results import Results
from generator.markdown import docstring, fenced, page, prose, signature, table


def command_line_page() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="finetrap")
    return page(
        "# Command line",
        prose(root.help or ""),
        "What a command prints goes to stdout, progress and errors to stderr.",
        table(
            ["exit code", "meaning"],
            [
                ["0", "done"],
                ["1", "a trial failed, or finetrap did; what is finished is kept"],
                ["2", "the input is wrong; one line says what, where and how to mend it"],
                ["130", "interrupted; the same command goes on from there"],
            ],
        ),
        *_commands(root, context),
    )


def _commands(command: Any, context: typer.Context) -> list[str]:
    parts = [] if context.parent is None else _command(command, context)
    for name, child in getattr(command, "commands", {}).items():
        parts += _commands(child, typer.Context(child, info_name=name, parent=context))
    return parts


def _command(command: Any, context: typer.Context) -> list[str]:
    said = docstring(command.callback)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = []
    for parameter in command.get_params(context):
        record = None if parameter.name == "help" else parameter.get_help_record(context)
        if record is not None:
            names, _, values = record[0].partition(" <")
            choices = " ".join(f"`{value}`" for value in values.rstrip(">").split("|") if value)
            rows.append([f"`{names}`", choices, prose(re.sub(r"  \[(.+)\]$", r" (\1)", record[1]))])
    examples = [text.removeprefix("Example: ") for text in said.body if text.startswith("Example: ")]
    return [
        f"## {context.command_path}",
        prose(said.summary),
        *(prose(text) for text in said.body if not text.startswith("Example: ")),
        fenced(usage),
        table(["option", "value", "what it does"], rows) if rows else "",
        *(f"Example:\n\n{fenced(' '.join(text.split()), 'bash')}" for text in examples),
    ]


def results_page(demo: str) -> str:
    """Every key of results.json, out of its JSON Schema. `demo` is a record to show a piece of."""
    schema = Results.json_schema()
    recommendation = json.dumps(json.loads(demo)["recommendations"][0], indent=1)
    return page(
        "# results.json",
        "The study's answer for programs. A study writes it into its folder; `--json` prints it; `Results` reads it. "
        "Its JSON Schema is in the package: `finetrap/results.schema.json`.",
        prose(inspect.getmodule(Results).__doc__.partition("\n\n")[2]),  # type: ignore[union-attr]
        *_schema_sections(schema, "Results", first="The file"),
        "## For example",
        "The recommendation in the [demo's record](../results/demo/results.json):",
        fenced(recommendation, "json"),
    )


def study_page() -> str:
    """Every key of a study file."""
    example = files("finetrap").joinpath("studies", "demo.yaml").read_text(encoding="utf-8").strip()
    return page(
        "# Study file",
        "`finetrap run STUDY.yaml` runs what a YAML file asks for. The keys are the arguments of `Study` in Python as "
        "well. An unknown key is an error that names the nearest one.",
        "This is the demo's:",
        fenced(example, "yaml"),
        *_schema_sections(Study.model_json_schema(), "Study", first="Keys"),
    )


def _schema_sections(schema: dict[str, Any], root: str, *, first: str) -> list[str]:
    """A section for the root and for each object that it refers to, in the order of reference."""
    definitions = schema.get("$defs", {})
    seen, parts = [root], []
    for name in seen:
        of = definitions.get(name, schema)
        parts.append(f"## {first if name == root else name}")
        if name != root:
            parts.append(prose(of.get("description", "")))
        rows = []
        for key, value in of["properties"].items():
            rows.append([f"`{key}`", _kind(value), prose(value.get("description", ""))])
            if name == "Study" or "default" in value:
                rows[-1][1] += _default(value, required=key in of.get("required", ()))
            seen += [found for found in _references(value) if found not in seen]
        parts.append(table(["key", "value", "what it is"], rows))
    return parts


def _references(value: object) -> list[str]:
    return re.findall(r"#/\$defs/(\w+)", json.dumps(value))


def _kind(value: dict[str, Any]) -> str:
    """A JSON Schema's type in words."""
    if "$ref" in value:
        (name,) = _references(value["$ref"])
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    match value.get("type"):
        case "array" if "prefixItems" in value:
            return f"\\[{', '.join(_kind(one) for one in value['prefixItems'])}\\]"
        case "array":
            return "empty list" if value.get("maxItems") == 0 else f"list of {_kind(value.get('items', {}))}"
        case "object":
            inner = value.get("additionalProperties")
            return f"object of {_kind(inner)}" if isinstance(inner, dict) else "object"
        case str(name):
            return f"{name}{_bounds(value)}"
    return "any"


def _bounds(value: dict[str, Any]) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    said = [f"{word} {value[key]:g}" for key, word in words.items() if key in value]
    return f" ({', '.join(said)})" if said else ""


def _default(value: dict[str, Any], *, required: bool) -> str:
    if required:
        return "; required" if "default" not in value else ""
    return f"; default `{json.dumps(value.get('default'))}`"


FIELDS = {
    "ModelSpec": "study.md#modelspec",
    "OwnData": "study.md#owndata",
    "Results": "results.md",
    "Study": "study.md",
}


def python_page() -> str:
    """The public names and their public methods."""
    parts = []
    for name in finetrap.__all__:
        cls = getattr(finetrap, name)
        if inspect.isfunction(cls):
            parts += [f"## {name}", f"`{name}{signature(cls)}`", *_said(cls)]
            continue
        said = docstring(cls)
        parts += [f"## {name}", prose(said.summary), *(prose(text) for text in said.body)]
        if name in FIELDS:
            parts.append(f"[Its fields]({FIELDS[name]}).")
        for key, member in vars(cls).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if key.startswith("_") or key in vars(BaseModel) or not inspect.isfunction(function):
                continue
            parts += [f"### {name}.{key}", f"`{key}{signature(function)}`", *_said(function)]
    _, _, example = inspect.cleandoc(finetrap.__doc__ or "").partition("\n\n")
    return page(
        "# Python",
        "What the command line does, from Python. These are the names that `finetrap` exports.",
        fenced(example, "python"),
        *parts,
    )


def _said(function: object) -> list[str]:
    said = docstring(function)
    raises = [f"Raises `{name}`: {prose(text)}" for name, text in said.sections.get("Raises", {}).items()]
    return [prose(said.summary), *(prose(text) for text in said.body), *raises]
