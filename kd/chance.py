"""Accuracies that guessing would have, too."""

import math

STANDARD_ERRORS = 3.0  # above the accuracy of guessing; one in 700 networks that guess is taken for better


def near_chance(accuracy: float, images: int, chance: float, errors: float = STANDARD_ERRORS) -> bool:
    """Whether an accuracy on so many images is, within so many standard errors, that of guessing."""
    return accuracy <= chance + errors * standard_error(images, chance)


def standard_error(images: int, chance: float) -> float:
    """Of the accuracy that guessing has on so many images."""
    return math.sqrt(chance * (1 - chance) / images)
