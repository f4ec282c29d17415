"""What ends a command early: mistakes that the user can correct, and a request to stop."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what was expected.

    Entry points print the message and exit with status 2, without a traceback.
    """


class Stopped(Exception):
    """The process was asked to end (SIGTERM), and has saved its state.

    Entry points print the message and exit with status 143, without a traceback.
    """
