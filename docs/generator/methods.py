"""A page for every method that is registered, out of its docstring, and the list of them."""

import inspect
from typing import get_type_hints

from finetrap.config import DEFAULT_ARMS, REFERENCE_ARMS
from finetrap.listing import method_rows
from finetrap.method import Method, Training, build, default_settings, is_trained, method, parse_arm
from finetrap.presets import EMBEDDED
from generator.markdown import docstring, fenced, fields_of, listed, page, prose, table
from generator.tasks import targets


def method_pages() -> dict[str, str]:
    """File name to page, the index included."""
    target = targets()[0]
    pages = {f"{name}.md": _method_page(name, target) for name in method.names()}
    rows = [
        [f"[{row['method']}]({row['method']}.md)", row["trains"], prose(row["what"]), _code_list(row["settings"])]
        for row in method_rows()
    ]
    pages["index.md"] = page(
        "# Methods",
        "A method is a way of adapting a model. An *arm* of a study is a method with its settings under a name: "
        "`--arm lora`, `--arm careless=full:learning_rate=1e-3`, `--arm mine=PATH`. "
        "[How to add one](../how_it_works.md#to-add-something).",
        table(["method", "trains", "what", "settings"], rows),
        f"Without `--arm` a study has {listed(DEFAULT_ARMS)}. {listed(REFERENCE_ARMS)} are in every study.",
    )
    return pages


def _method_page(name: str, target: str) -> str:
    said = docstring(method[name])
    built = build(name, {**default_settings(name), **_stand_ins(name)})
    return page(
        f"# {name}",
        prose(said.summary),
        *(prose(paragraph) for paragraph in said.body),
        " ".join(_facts(name, built)),
        "## Settings",
        _settings_table(name, said.sections.get("Args", {})),
        "## Example",
        fenced("\n".join(_method_examples(name, target)), "bash"),
        f"Defined in `{method[name].__module__}`.",
    )


def _facts(name: str, built: Method) -> list[str]:
    facts = []
    if name in REFERENCE_ARMS:
        facts.append("In every study, whatever its arms are.")
    elif name in DEFAULT_ARMS:
        facts.append("One of the arms that a study has by default.")
    if built.checkpoint is not None:
        facts.append("It trains nothing: it evaluates what you have.")
    elif built.training is None:
        facts.append("It trains nothing, so it keeps no weights and forgets nothing.")
    elif built.adapter:
        facts.append("It trains an adapter, kept in PEFT's format and merged into the model before it is evaluated.")
    else:
        facts.append("It trains the model itself, kept as a whole model in Transformers' format.")
    if built.shots:
        facts.append("Its examples are paid for at every query.")
    return facts


def _stand_ins(name: str) -> dict[str, object]:
    """Values for settings that have no default, so that the method can be looked at."""
    hints = get_type_hints(method[name])
    return {key: hints[key]("1") for key, value in default_settings(name).items() if value is inspect.Parameter.empty}


def _settings_table(name: str, own: dict[str, str]) -> str:
    training = fields_of(Training) if is_trained(name) else {}
    rows = []
    for key, value in default_settings(name).items():
        default = "none: it has to be given" if value is inspect.Parameter.empty else f"`{value}`"
        text = own.get(key) or (training[key].text if key in training else "")
        rows.append([f"`{key}`", default, prose(text)])
    return table(["setting", "default", "what it is"], rows) if rows else "It has none."


def _method_examples(name: str, target: str) -> list[str]:
    settings = default_settings(name)
    given = [f"{key}={key.upper()}" for key, value in settings.items() if value is inspect.Parameter.empty]
    arms = [f"mine={name}:{','.join(given)}"] if given else [name]
    if settings and not given:
        key, value = next(iter(settings.items()))
        arms.append(f"mine={name}:{key}={value}")
    for arm in arms:
        parse_arm(arm)
    return [f"finetrap compare --model {EMBEDDED} --task {target} --arm {arm}" for arm in arms]


def _code_list(settings: str) -> str:
    return ", ".join(f"`{setting}`" for setting in settings.split(", ")) if settings else "none"
