"""Define the exceptions of the package. Imports nothing else of it.

    FinetaleError                 an error that a person can fix: message + hint, exit code 1
    ├── ConfigError               a setting is unknown, out of range or contradicts another
    ├── SourceError               text that can't be found, opened, decoded or split
    ├── TokenizerError            a tokenizer that is empty, lossy or does not fit its model
    ├── ModelError                a model that can't be used here
    │   └── HubError              the hub can't be reached, or does not hold what was asked for
    ├── RunError                  a run directory that is missing, corrupted or in use
    ├── TrainingError             training can't start or can't continue
    │   ├── DivergedError         the loss or the gradients stopped being finite
    │   ├── MemoryLimitError      not even one sequence at a time fits into memory
    │   └── RankError             another process of the same run failed, or can't be reached
    ├── GenerationError           a prompt or a sampling setting that can't be used
    └── InterruptedRun            a signal stopped the run and it was saved: exit code 75

Every message states the value seen and the rule that it breaks. Every hint states what to do next.
"""

from __future__ import annotations


class FinetaleError(Exception):
    """Base class of all errors that a person can fix.

    Args:
        message: one sentence: the value seen, and the rule that it breaks.
        hint: one sentence: what to do next.
    """

    exit_code = 1
    told = False
    """Whether another process of the run shows it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


class ConfigError(FinetaleError):
    """A setting is unknown, out of range or contradicts another."""


class SourceError(FinetaleError):
    """A text can't be found, opened, decoded or split."""


class TokenizerError(FinetaleError):
    """A tokenizer is empty, loses text, or does not fit its model."""


class ModelError(FinetaleError):
    """A model can't be used here."""


class HubError(ModelError):
    """The Hub can't be reached, or lacks what was requested."""


class RunError(FinetaleError):
    """A run directory is missing, corrupted, in use, or exists already."""


class TrainingError(FinetaleError):
    """Training can't start or can't continue."""


class DivergedError(TrainingError):
    """The loss or the gradients stopped being finite."""


class MemoryLimitError(TrainingError):
    """Memory is too small for one sequence at a time."""


class RankError(TrainingError):
    """Another process of the same run failed, or can't be reached.

    Args:
        message, hint: as in FinetaleError.
        exit_code: exit code of the process that failed.
        lost: whether a process can't be reached; then nothing can be agreed any more.
    """

    def __init__(self, message: str, hint: str = "", *, exit_code: int = 1, lost: bool = False) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
        self.lost = lost


class GenerationError(FinetaleError):
    """A prompt or a sampling setting can't be used."""


class RequestError(FinetaleError):
    """The service refuses a request.

    Args:
        message: what is wrong.
        parameter: the parameter of the body at fault.
        status: HTTP status of the response.
        kind, code: `type` and `code` in the response body, as in OpenAI's API.
    """

    def __init__(
        self,
        message: str,
        parameter: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message, "")
        self.parameter = parameter
        self.status = status
        self.kind = kind
        self.code = code


class InterruptedRun(FinetaleError):
    """A signal stopped the run; it was saved and can be resumed."""

    exit_code = 75
