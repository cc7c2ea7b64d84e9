"""A chart as a part of an HTML page that follows the page's colours."""

import re
from xml.etree import ElementTree

from finetrap.report.charts.canvas import PALETTE


def inline(svg: str, *, name: str, label: str) -> str:
    """A chart as a part of an HTML page that has `palette_css`: `name` is unique in the page, `label` says what it is.

    Colours become the page's variables and text the page's font. No `style` is left, so that a page may forbid it.
    """
    root = ElementTree.fromstring(svg)
    referenced = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        kept = dict(pair for key, value in element.attrib.items() for pair in _attributes(key, value, name, referenced))
        element.attrib.clear()
        element.attrib.update(kept)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "chart", "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(key: str, value: str, name: str, referenced: set[str]) -> list[tuple[str, str]]:
    """An attribute as it stands in a page that holds other charts too: presentation attributes instead of `style`."""
    key = key.rpartition("}")[2]
    if key == "style":
        pairs = [(k.strip(), v.strip()) for k, _, v in (part.partition(":") for part in value.split(";")) if v]
        return [(k, _COLOUR_NAMES.get(v.lower(), v)) for k, v in pairs if k not in ("font", "font-family")]
    if key == "id":
        return [(key, f"{name}-{value}")] if value in referenced else []
    if key == "href":
        return [(key, f"#{name}-{value.removeprefix('#')}")]
    return [(key, value.replace("url(#", f"url(#{name}-"))]


_COLOUR_NAMES = {colour.light: f"var(--{name})" for name, colour in PALETTE.items()} | {"#000000": "currentColor"}


def palette_css() -> str:
    """The palette as CSS variables, and a class `tone-NAME` for each colour."""
    light, dark = (
        "".join(f"--{name}:{getattr(colour, ground)};" for name, colour in PALETTE.items())
        for ground in ("light", "dark")
    )
    tones = "".join(f".tone-{name}{{--tone:var(--{name})}}" for name in PALETTE)
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{tones}"
