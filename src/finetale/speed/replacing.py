"""Give a module another `forward` by changing its class, and change it back. Knows no particular module.

The module keeps its parameters, children, hooks and names, and is still an instance of its old class. So adapters that
look for `nn.Linear`, and code that knows a module by its class's name, work as before.
"""

from __future__ import annotations

from typing import Any

import torch.nn as nn


class Replacement(nn.Module):
    """Base of classes with a faster `forward`."""

    replaced: type[nn.Module]

    def original(self, *arguments: Any, **options: Any) -> Any:
        """Call the `forward` of the replaced class."""
        return self.replaced.forward(self, *arguments, **options)


_CLASSES: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _combined(faster: type[Any], replaced: type[Any]) -> type[Any]:
    """Return the class of a replaced module; one for each pair."""
    if (faster, replaced) not in _CLASSES:
        names = {"replaced": replaced, "__module__": replaced.__module__, "__qualname__": replaced.__qualname__}
        _CLASSES[faster, replaced] = type(replaced.__name__, (faster, replaced), names)
    return _CLASSES[faster, replaced]


def replace(module: nn.Module, faster: type[Replacement]) -> None:
    """Change the class of a module to one with the `forward` of `faster`."""
    module.__class__ = _combined(faster, type(module))


def restore(module: nn.Module) -> None:
    """Change the class of a module back, if `replace` changed it."""
    if isinstance(module, Replacement):
        module.__class__ = module.replaced  # type: ignore[assignment]


def computed_as(module: nn.Module) -> type[nn.Module]:
    """Return the class whose `forward` a module computes: that before `replace`, or its attribute `computes_as`."""
    found = type(module).replaced if isinstance(module, Replacement) else type(module)
    return getattr(found, "computes_as", found)


def is_simple(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling a module does nothing but the `forward` of `kind`: no subclass of it, and no hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        computed_as(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in hooks)
    )
