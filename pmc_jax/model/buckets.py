"""The few distinct lengths to which sequences are padded."""


def power_of_two(count: int) -> int:
    """The smallest power of two that is no less than `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()


def bucket_length(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, 128, 192, … that holds `length` tokens.

    Few distinct lengths mean few compilations; at most a third of a row is padding.
    """
    if length <= 16:
        return 16
    power = power_of_two(length)
    return 3 * power // 4 if length <= 3 * power // 4 else power


def halved(most: int, length: int) -> int:
    """`most`, or the half, quarter, … of it (rounded up, at least 16) that still holds `length`.

    Fewer than the buckets up to `most`, for what many compiled programs depend on.
    """
    while (half := -(-most // 2)) >= max(length, 16):
        most = half
    return most


def bucket_rows(rows: int) -> int:
    """The smallest of 0, 1, …, 8, 10, 12, 14, 16, 20, … that is no less than `rows`.

    Finer than `bucket_length`, since a row costs more than a token: at most a fifth is padding.
    """
    step = 1 << max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step
