"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what was expected.

    Entry points print the message and exit with status 2, without a traceback.
    """
