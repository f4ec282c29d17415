"""What ends a command early: mistakes that the user can correct, and a request to stop."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what was expected.

    Entry points print the message and exit with status 2, without a traceback.
    """


class NotFinite(UserError):
    """Logits that are NaN or infinite, from which no token can be chosen and nothing be measured.

    Attributes:
        index: of the prompt, among those that the model was given.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Stopped(Exception):
    """The process was asked to end (SIGTERM), and has saved its state.

    Entry points print the message and exit with status 143, without a traceback.
    """
