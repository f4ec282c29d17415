"""Buckets: the few lengths and batch sizes to which arrays are padded, to compile few functions."""


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`; `count` is at least 1."""
    return 1 << (count - 1).bit_length()


def bucket_length(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, 128, 192, … that holds `length` tokens.

    Above 16, at most a third of a bucket is padding.
    """
    if length <= 16:
        return 16
    power = power_of_two(length)
    return 3 * power // 4 if length <= 3 * power // 4 else power


def halved(most: int, length: int) -> int:
    """`most`, halved (rounding up) for as long as the result is at least `length` and at least 16.

    There are fewer such lengths than buckets. They serve where many compiled functions depend on a
    length.
    """
    while (half := -(-most // 2)) >= max(length, 16):
        most = half
    return most


def bucket_rows(rows: int) -> int:
    """The smallest of 0, 1, …, 8, 10, 12, 14, 16, 20, … that is at least `rows`.

    At most a fifth is padding. The buckets are finer than those of `bucket_length`, since a row
    costs more than a token.
    """
    step = 1 << max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step
