"""The error that a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what the user gave: told in one line, without a traceback.

    The message names the thing, its value, what was expected and what to do.
    `jigclu.launch` prints it and exits with status 2.
    """
