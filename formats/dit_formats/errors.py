"""Errors that a user can do something about. Each says where, what was found, and what to do next."""


class TraceError(Exception):
    """A file that is not a trace, is damaged, or does not fit; the message says which."""

    exit_code = 3


class IncompleteError(TraceError):
    """A trace that lacks something which is needed, and could still get it."""

    exit_code = 4


class ConflictError(TraceError):
    """Something else is where the output should go; nothing was touched."""

    exit_code = 1


class PresentError(ConflictError):
    """The prompt is in the trace already."""


class PromptError(ValueError):
    """A prompt file that cannot be read as one."""

    exit_code = 1
