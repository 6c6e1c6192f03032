"""The page for trying the models: one HTML document with its own style and scripts. Knows no requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

LANGUAGES = ("en", "zh")
SCRIPTS = ("basics", "service", "store", "settings", "takes", "desk", "chat", "main")
"""The scripts in the order in which they are read."""


def page(models: Sequence[str], nonce: str) -> tuple[str, str]:
    """Return the page and its Content-Security-Policy.

    The policy forbids outside resources and all scripts but the page's own. It also forbids the page itself to turn
    text into markup, so that a text of a model can't become a script.

    Args:
        models: names of the models that are served.
        nonce: a random word that nobody can guess; the browser runs what has it.
    """
    style, script = _sources()
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return _template().render(models=models, nonce=nonce, style=Markup(style), script=Markup(script)), policy


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("finetale", "templates"), autoescape=True)
    return environment.get_template("playground.html.j2")


@cache
def _sources() -> tuple[str, str]:
    """Return the style and the script."""
    folder = resources.files("finetale") / "templates"
    own = folder / "playground"
    style = "\n".join(file.read_text(encoding="utf-8") for file in (folder / "look.css", own / "page.css"))
    words = {each: json.loads((own / f"words.{each}.json").read_text(encoding="utf-8")) for each in LANGUAGES}
    scripts = [(own / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    quoted = json.dumps(words, ensure_ascii=False).replace("<", "\\u003c")
    return style, "\n".join(['"use strict";', f"const WORDS = {quoted};", *scripts])
