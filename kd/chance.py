"""Accuracies that guessing would have, too."""

import math

from kd.data.base import DistillationData
from kd.errors import ConfigError

STANDARD_ERRORS = 3.0  # above the accuracy of guessing; one in 700 networks that guess is taken for better


def near_chance(accuracy: float, images: int, chance: float, errors: float = STANDARD_ERRORS) -> bool:
    """Whether an accuracy on so many images is, within so many standard errors, that of guessing."""
    return accuracy <= chance + errors * standard_error(images, chance)


def standard_error(images: int, chance: float) -> float:
    """Of the accuracy that guessing has on so many images."""
    return math.sqrt(chance * (1 - chance) / images)


def guessing(data: DistillationData, arm: str) -> float:
    """The accuracy of always naming the most frequent of the classes that an arm sees."""
    unseen = set(data.omit) if arm in data.omit_from else set()
    try:
        shares: list[float] = data.class_shares()
    except ConfigError:  # data of the user's own do not say
        shares = [1 / data.num_classes] * data.num_classes
    seen = [share for label, share in enumerate(shares) if label not in unseen]
    return max(seen) / sum(seen)
