"""Layers that the mobile networks share."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def conv_bn(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, padded so that only `stride` changes the image's size, and its batch norm."""
    padding = kernel // 2
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels_out)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of (B, C, H, W) out over the groups: figure 1 of ShuffleNet (1707.01083).

    With C = groups x n, channel j of group i (number i n + j) becomes number j groups + i.
    """
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)
