"""Numbers in sentences."""


def counted(number: int, one: str, many: str) -> str:
    """A number with the words that follow it: "1 answer is", "2 answers are"."""
    return f"{number:,} {one if number == 1 else many}"
