"""ShuffleNet V2 for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.layers import channel_shuffle, conv_bn

STEM = 24


class ShuffleNetV2(nn.Module):
    """Blocks that change one half of the channels and then shuffle both halves: Ma et al. 2018 (1807.11164).

    A stem of 24 channels, three stages that each halve the image, a 1x1 convolution, global average pool and one linear
    layer. `width` holds each stage's channels and then those of the 1x1 convolution, `blocks` each stage's number of
    blocks. The defaults are the 1x column of table 5.

    The network of the distillation tables since CRD (1910.10699). They depart from the paper so that it fits 3x32x32:
    the stem is a 1x1 convolution of stride 1 without pooling. The weights start as PyTorch's own, as theirs do.

    Taps: `relu` (B, 24, H, W) is the stem; `layer1` (B, width[0], H/2, W/2), `layer2` (B, width[1], H/4, W/4), `layer3`
    (B, width[2], H/8, W/8) after their last ReLU; `layer1.3.flatten` is the fourth block's output before it; `relu_1`
    (B, width[3], H/8, W/8) is the last map; `flatten` (B, width[3]) is the embedding.
    """

    def __init__(
        self,
        width: Sequence[int] = (116, 232, 464, 1024),
        blocks: Sequence[int] = (4, 8, 4),
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        *stages, embedding = arguments.widths("width", width, shortest=4, longest=4)
        counts = arguments.widths("blocks", blocks, shortest=3, longest=3)
        if any(channels % 2 for channels in stages):
            raise ConfigError(f"Expected the stages' `width` to be even, to be split in halves, but got {stages}.")
        channels = STEM
        self.stem = conv_bn(arguments.shape(image_shape)[0], channels, 1)
        for number, (channels_out, count) in enumerate(zip(stages, counts, strict=True), start=1):
            rest = [SplitBlock(channels_out) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(DownBlock(channels, channels_out), *rest))
            channels = channels_out
        self.head = conv_bn(channels, embedding, 1)
        self.fc = nn.Linear(embedding, check.integer("num_classes", num_classes, low=1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = self.get_submodule("layer3")(self.get_submodule("layer2")(self.get_submodule("layer1")(x)))
        x = F.relu(self.head(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Branch(nn.Module):
    """A 1x1, a depthwise 3x3 and a 1x1 convolution, each with batch norm, without the last ReLU.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(channels_in, channels_out, 1)
        self.depthwise = conv_bn(channels_out, channels_out, 3, stride=stride, groups=channels_out)
        self.last = conv_bn(channels_out, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.depthwise(F.relu(self.first(x))))
        return output


class SplitBlock(nn.Module):
    """Keep the first half of the channels, send the second through a branch, shuffle: figure 3c of 1807.11164.

    (B, channels, H, W) -> the same. The ReLU stands after the shuffle, where the stage's output can be read before and
    after it: the kept half comes out of a ReLU already, and a second one changes neither its values nor its gradients.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.branch = Branch(self.split, self.split, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x[:, : self.split], x[:, self.split :]
        return F.relu(channel_shuffle(torch.cat([kept, self.branch(changed)], dim=1), 2))


class DownBlock(nn.Module):
    """Send all channels through two branches that halve the image, shuffle, ReLU: figure 3d of 1807.11164.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.depthwise = conv_bn(channels_in, channels_in, 3, stride=2, groups=channels_in)
        self.last = conv_bn(channels_in, half, 1)
        self.branch = Branch(channels_in, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.last(self.depthwise(x))
        return F.relu(channel_shuffle(torch.cat([left, self.branch(x)], dim=1), 2))
