"""The keyed draws once more, in plain Python integers: what the tests hold the tensor code against."""


def mix(value: int) -> int:
    """The "lowbias32" finaliser on a Python integer of any size."""
    value %= 2**32
    value = value ^ value >> 16
    value = value * 0x7FEB352D % 2**32
    value = value ^ value >> 15
    value = value * 0x846CA68B % 2**32
    return value ^ value >> 16


def draws(seed: int, epoch: int, index: int, count: int) -> list[int]:
    """The 32-bit draws of one image."""
    key = mix(mix(mix(seed) + epoch) ^ mix(index))
    return [mix(key + number * 0x9E3779B9) for number in range(1, count + 1)]


def below(draw: int, limit: int) -> int:
    return draw * limit // 2**32
