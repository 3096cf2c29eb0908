"""What the HTML pages share: each is one file that needs nothing else, no network, no script, no file beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

_DEEPEST = 6  # levels of a value's lists that are told


class Picture(NamedTuple):
    """A picture as a data: URI, its size in pixels, its caption and, for who cannot see it, what is on it."""

    uri: str
    width: int
    height: int
    caption: str
    alt: str


def picture(data: bytes, kind: str, size: tuple[int, int], caption: str, alt: str) -> Picture:
    """The picture of a file's bytes. kind: png, gif or webp. size: width and height in pixels."""
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size, caption, alt)


def render(template: str, content: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """A page from a template of this folder; what `content` holds is text, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(content)


def in_words(value: Any, deepest: int = _DEEPEST) -> str:
    """A value of JSON's types as a reader wants it; what lies deeper than so many lists or mappings is an ellipsis."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping | list | tuple) and not deepest:
        return "\N{HORIZONTAL ELLIPSIS}"
    if isinstance(value, Mapping):
        pairs = value.items()
        return ", ".join(f"{str(name).replace('_', ' ')}: {in_words(item, deepest - 1)}" for name, item in pairs)
    if isinstance(value, list | tuple):
        return ", ".join(in_words(item, deepest - 1) for item in value)
    return f"{value:.9g}" if isinstance(value, float) else str(value)
