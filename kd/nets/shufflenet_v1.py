"""ShuffleNet (version 1) for small images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.layers import channel_shuffle, conv_bn

STEM = 24


class ShuffleNetV1(nn.Module):
    """Bottlenecks of grouped 1x1 convolutions with a channel shuffle in between: Zhang et al. 2018 (1707.01083).

    A stem of 24 channels, three stages that each halve the image, global average pool and one linear layer. `width` and
    `blocks` hold each stage's channels and number of blocks. The defaults are those of table 1 for 3 groups.

    The network of the distillation tables since CRD (1910.10699). They depart from the paper so that it fits 3x32x32:
    the stem is a 1x1 convolution of stride 1 without pooling; and a ReLU follows the depthwise convolution too.
    The weights start as PyTorch's own, as theirs do.

    Taps: `relu` (B, 24, H, W) is the stem; `layer1` (B, width[0], H/2, W/2), `layer2` (B, width[1], H/4, W/4), `layer3`
    (B, width[2], H/8, W/8) after their last ReLU; `layer1.3.add` is the fourth block's sum before it; `flatten`
    (B, width[2]) is the embedding.
    """

    def __init__(
        self,
        width: Sequence[int] = (240, 480, 960),
        blocks: Sequence[int] = (4, 8, 4),
        groups: int = 3,
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        stages = arguments.widths("width", width, shortest=3, longest=3)
        counts = arguments.widths("blocks", blocks, shortest=3, longest=3)
        groups = check.integer("groups", groups, low=1)
        _refuse_indivisible([STEM, *stages], groups)
        channels = STEM
        self.stem = conv_bn(arguments.shape(image_shape)[0], channels, 1)
        for number, (channels_out, count) in enumerate(zip(stages, counts, strict=True), start=1):
            # The stem has too few channels to be read in groups (table 1 of the paper).
            first = ShuffleBlock(channels, channels_out, 2, 1 if number == 1 else groups, groups)
            rest = [ShuffleBlock(channels_out, channels_out, 1, groups, groups) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            channels = channels_out
        self.fc = nn.Linear(channels, check.integer("num_classes", num_classes, low=1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ShuffleBlock(nn.Module):
    """A grouped 1x1 convolution, shuffle, depthwise 3x3 and grouped 1x1 convolution: figure 2 of 1707.01083.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)). With stride 1 the input is added; with
    stride 2 its 3x3 average pool is appended, so that the convolutions make only channels_out - channels_in channels.
    Inside the block there are a quarter as many.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups_in: int, groups: int) -> None:
        super().__init__()
        made = channels_out if stride == 1 else channels_out - channels_in
        inner = made // 4
        self.groups_in = groups_in
        self.halve = stride == 2
        self.reduce = conv_bn(channels_in, inner, 1, groups=groups_in)
        self.depthwise = conv_bn(inner, inner, 3, stride=stride, groups=inner)
        self.expand = conv_bn(inner, made, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        inner = channel_shuffle(F.relu(self.reduce(x)), self.groups_in)
        residual = self.expand(F.relu(self.depthwise(inner)))
        if self.halve:
            return F.relu(torch.cat([residual, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(residual + x)


def _refuse_indivisible(widths: Sequence[int], groups: int) -> None:
    for before, after in pairwise(widths):
        for made in (after - before, after):  # by a stage's first block, and by the others
            if made < 4 * groups or made % groups or made // 4 % groups:
                raise ConfigError(
                    f"Expected `width` to let every block split its channels over {groups} groups, but "
                    f"{list(widths[1:])} asks for a block of {made} channels, {made // 4} inside."
                )
