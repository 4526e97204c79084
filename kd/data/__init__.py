"""Datasets: resident uint8 tensors, a folder of images, or a user's own LightningDataModule."""

from kd.data.base import DistillationData, View
from kd.data.folder import ImageFolder
from kd.data.foreign import ForeignData
from kd.data.images import ImageData
from kd.data.published import CIFAR10, CIFAR100, MNIST, FashionMNIST
from kd.data.resident import Digits, ResidentData

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "DistillationData",
    "FashionMNIST",
    "ForeignData",
    "ImageData",
    "ImageFolder",
    "ResidentData",
    "View",
]
