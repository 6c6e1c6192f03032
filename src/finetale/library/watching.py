"""Let a caller follow and cancel the work of the library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from finetale.display import Display, NotebookDisplay, in_notebook
from finetale.notify import Notify
from finetale.schema import Event, StageEvent
from finetale.signals import CALLER, Stopped, cancelled_by, is_cancelled

OnEvent = Callable[[Event], None]


@contextmanager
def watching(
    *, quiet: bool, on_event: OnEvent | None = None, cancel: threading.Event | None = None
) -> Iterator[Notify]:
    """Yield a listener that displays events, passes them to the caller, and stops the work when it is cancelled.

    Args:
        quiet: show warnings only.
        on_event: called with each event, in the thread of the work. An exception that it raises ends the work.
        cancel: setting it stops the work as Ctrl-C does. A run in training saves a checkpoint first.
    """
    with ExitStack() as stack:
        shown: NotebookDisplay | Display = NotebookDisplay(quiet=quiet) if in_notebook() else Display(quiet=quiet)
        stack.enter_context(shown)
        stack.enter_context(cancelled_by(cancel))
        trains = False

        def notify(event: Event) -> None:
            nonlocal trains
            shown(event)
            if on_event is not None:
                on_event(event)
            trains = trains or event.event == "begin"
            # Once training has begun, the training loop checks for a stop between steps.
            if isinstance(event, StageEvent) and not trains and is_cancelled():
                raise Stopped(CALLER)

        yield notify
