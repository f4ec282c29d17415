"""The few distinct lengths to which sequences are padded."""


def bucket_length(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, 128, 192, … that holds `length` tokens.

    Few distinct lengths mean few compilations; at most a third of a row is padding.
    """
    if length <= 16:
        return 16
    power = 1 << (length - 1).bit_length()
    return 3 * power // 4 if length <= 3 * power // 4 else power
