"""Turn settings classes into parameters of a command, so that every flag is declared once: as a field in `config`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from finetale.config import SECTIONS, Settings, setting_groups

ALIASES: dict[str, tuple[str, ...]] = {"prompts": ("--prompt",), "model": ("-m",), "num_samples": ("-n",)}
"""Further flags of settings. In every command -m is the model, and -n is the number of texts per prompt."""


def with_settings(
    *sections: type[Settings], skip: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for each setting of the sections. The command receives given values as `**settings`.

    Values stay text, because `Settings.resolve` validates all of them together.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in own} | set(skip)
        added = []
        groups = [(title, names) for title, names in setting_groups(sections or SECTIONS) if title != "Source"]
        for order, (title, names) in enumerate(groups):
            group = Group(title, sort_key=order + 10)
            for name in names:
                field = next(
                    section.model_fields[name] for section in sections or SECTIONS if name in section.model_fields
                )
                if name not in taken:
                    added.append(_parameter(name, field, group))

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        wrapper.__doc__ = function.__doc__
        wrapper.__name__ = function.__name__
        wrapper.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *added]} | {
            "return": signature.return_annotation
        }
        return wrapper

    return decorate


def _parameter(name: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    kind = bool if field.annotation == (bool | None) else field.annotation
    many = "tuple" in str(kind)
    flag: Any = bool | None if kind is bool else list[str] | None if many else str | None
    default = (
        ""
        if field.default in (None, (), "")
        else f" [default: {str(field.default).lower() if kind is bool else field.default}]"
    )
    parameter = Parameter(
        help=f"{field.description}{default}",
        group=group,
        alias=ALIASES.get(name),
        show_default=False,
        metavar=None if kind is bool else _metavar(kind),
        negative=None if kind is bool else (),
        allow_leading_hyphen=not many and kind is not bool,
        consume_multiple=False if many else None,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[flag, parameter])


def _metavar(kind: Any) -> str:
    """Return the placeholder for a value in the help text: its choices, or INT, FLOAT, PATH, TEXT."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    names = str(kind)
    return next((word.upper() for word in ("int", "float", "path") if word in names.lower()), "TEXT")
