"""Wide residual networks."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.init import he


class WideResNet(nn.Module):
    """WRN-`depth`-`width` of Zagoruyko and Komodakis 2016 (1605.07146): pre-activation blocks, `width` times wider.

    A 3x3 stem of 16 channels, three stages of n = (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels, the
    later two halving the image, then batch norm, ReLU, global average pool and one linear layer. `dropout` sits between
    the two convolutions of a block, as in the paper.

    Taps: `layer1` (B, 16 width, H, W), `layer2` (B, 32 width, H/2, W/2), `layer3` (B, 64 width, H/4, W/4), all before
    the next batch norm and ReLU; `relu` is the last stage after them; `flatten` (B, 64 width) is the embedding.
    """

    def __init__(
        self, depth: int, width: int, dropout: float = 0.0, *, num_classes: int, image_shape: Sequence[int]
    ) -> None:
        super().__init__()
        width = check.integer("width", width, low=1)
        dropout = check.number("dropout", dropout, low=0, high=1)
        blocks = _blocks_per_stage(depth)
        channels = 16 * width
        self.conv1 = nn.Conv2d(arguments.shape(image_shape)[0], 16, kernel_size=3, padding=1, bias=False)
        self.layer1 = _stage(16, channels, 1, blocks, dropout)
        self.layer2 = _stage(channels, 2 * channels, 2, blocks, dropout)
        self.layer3 = _stage(2 * channels, 4 * channels, 2, blocks, dropout)
        self.bn = nn.BatchNorm2d(4 * channels)
        self.fc = nn.Linear(4 * channels, check.integer("num_classes", num_classes, low=1))
        he(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(image))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


class WideBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, BN, ReLU, dropout, 3x3 convolution, added to the input.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)). Where the number of channels changes,
    the shortcut is a 1x1 convolution of the activated input; elsewhere it is the raw input.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False)
        self.project = channels_in != channels_out
        if self.project:
            self.shortcut = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(active)))
        residual = self.conv2(self.dropout(residual))
        shortcut = self.shortcut(active) if self.project else x
        total: Tensor = residual + shortcut
        return total


def _stage(channels_in: int, channels_out: int, stride: int, blocks: int, dropout: float) -> nn.Sequential:
    first = WideBlock(channels_in, channels_out, stride, dropout)
    return nn.Sequential(first, *(WideBlock(channels_out, channels_out, 1, dropout) for _ in range(blocks - 1)))


def _blocks_per_stage(depth: int) -> int:
    check.integer("depth", depth)
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ConfigError(f"Expected `depth` to be 6n + 4 (10, 16, 22, 28, 34, 40, ...), but got {depth}.")
    return blocks
