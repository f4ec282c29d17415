"""What ends a command early: mistakes a user can mend, and a request to stop."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what was expected.

    Entry points print the message and exit with status 2, without a traceback.
    """


class Stopped(Exception):
    """Someone asked the process to end (SIGTERM), and it has saved what it had.

    Entry points print the message and exit with status 143, without a traceback.
    """
