"""The error of a command, apart from its mapping so that every module may raise it."""


class CommandError(RuntimeError):
    """A command cannot do what it was asked; the message says why and what to do."""
