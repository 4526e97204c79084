"""Residual networks for small images."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.init import he

Shortcut = Literal["conv", "pad"]
EXPANSION = 4  # a bottleneck's output channels per channel of its 3x3 convolution


class _ResNet(nn.Module):
    """A 3x3 stem, stages of blocks (each but the first halves the image), global average pool, one linear layer."""

    def __init__(
        self,
        stem: int,
        stages: Sequence[tuple[int, int]],  # per stage: channels, blocks
        block: Callable[[int, int, int], nn.Module],  # from channels in, channels out, stride
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(arguments.shape(image_shape)[0], stem, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = [f"layer{i}" for i in range(1, len(stages) + 1)]
        channels = stem
        for name, (channels_out, blocks) in zip(self.stages, stages, strict=True):
            first = block(channels, channels_out, 1 if name == "layer1" else 2)
            rest = [block(channels_out, channels_out, 1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            channels = channels_out
        self.fc = nn.Linear(channels, check.integer("num_classes", num_classes, low=1))
        he(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


class CifarResNet(_ResNet):
    """A 3x3 stem and stages of equally many basic blocks; every stage but the first halves the image.

    `width` is the stem's width and then each stage's; with S stages of n blocks the depth is 2Sn + 2.

    - depth 6n + 2 and widths 16, 16, 32, 64: ResNet-20, 32, 44, 56, 110 of section 4.2 of He et al. 2016 (1512.03385);
    - widths 32, 64, 128, 256: the four times wider resnet8x4 and resnet32x4 of the distillation benchmark tables;
    - depth 18 and widths 64, 64, 128, 256, 512: ResNet-18 as it is used on CIFAR, with a 3x3 stem and no stem pool.

    `shortcut` where a stage changes the shape: "conv" is a 1x1 convolution with batch norm (option B of the paper; what
    the distillation tables, since CRD, 1910.10699, count), "pad" the parameter-free subsampling with zero channels
    (option A; what the paper itself used on CIFAR-10).

    Taps: `relu` (B, width[0], H, W) is the stem; `layer1` (B, width[1], H, W), `layer2` (B, width[2], H/2, W/2), ...
    after their last ReLU; `layer1.0.add` is the first block's sum before it; `flatten` (B, width[-1]) is the embedding.
    """

    def __init__(
        self,
        depth: int,
        width: Sequence[int] = (16, 16, 32, 64),
        shortcut: Shortcut = "conv",
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        stem, *stages = arguments.widths("width", width, shortest=2)
        check.choice("shortcut", shortcut, ("conv", "pad"))
        if shortcut == "pad" and any(b < a for a, b in pairwise([stem, *stages])):
            raise ConfigError(f"Expected `width` never to fall with `shortcut=pad`, but got {[stem, *stages]}.")
        blocks = _blocks_per_stage(depth, len(stages))
        block = partial(BasicBlock, shortcut=shortcut)
        super().__init__(stem, [(channels, blocks) for channels in stages], block, num_classes, image_shape)


class BottleneckResNet(_ResNet):
    """A 3x3 stem and stages of bottleneck blocks, whose outputs are four times as wide as their 3x3 convolutions.

    `blocks` holds each stage's number of blocks, `width` the stem's width and then that of each stage's 3x3
    convolutions. With blocks 3, 4, 6, 3 and the default widths: ResNet-50 of table 1 of He et al. 2016 (1512.03385) as
    the distillation tables since CRD (1910.10699) use it on CIFAR-100, with a 3x3 stem and no stem pool; 3, 4, 23, 3
    and 3, 8, 36, 3 are ResNet-101 and 152. A block halves the image in its 3x3 convolution, as torchvision's does; the
    paper's does so in its first 1x1 convolution.

    Taps: `relu` (B, width[0], H, W) is the stem; `layer1` (B, 4 width[1], H, W), `layer2` (B, 4 width[2], H/2, W/2),
    ... after their last ReLU; `layer1.0.add` is the first block's sum before it; `flatten` (B, 4 width[-1]) is the
    embedding.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: Sequence[int] = (64, 64, 128, 256, 512),
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        stem, *inner = arguments.widths("width", width, shortest=2)
        blocks = arguments.widths("blocks", blocks, shortest=len(inner), longest=len(inner))
        stages = [(EXPANSION * channels, count) for channels, count in zip(inner, blocks, strict=True)]
        super().__init__(stem, stages, BottleneckBlock, num_classes, image_shape)


class BasicBlock(nn.Module):
    """ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x)))))), two 3x3 convolutions: figure 2 of 1512.03385.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            kind = PadShortcut if shortcut == "pad" else _conv_shortcut
            self.shortcut = kind(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """ReLU(shortcut(x) + residual(x)), the residual a 1x1, a 3x3 and a 1x1 convolution: figure 5 of 1512.03385.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)); each convolution has its batch norm,
    the first two a ReLU after it. The 3x3 convolution has channels_out / 4 channels and the stride.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // EXPANSION
        self.conv1 = nn.Conv2d(channels_in, inner, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = _conv_shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return F.relu(residual + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, with the missing channels zero, half of them on either side: no parameters."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = channels_out - channels_in
        self.pad = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)


def _conv_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def _blocks_per_stage(depth: int, stages: int) -> int:
    check.integer("depth", depth)
    blocks, rest = divmod(depth - 2, 2 * stages)
    if blocks < 1 or rest:
        known = ", ".join(str(2 * stages * n + 2) for n in range(1, 5))
        raise ConfigError(f"Expected `depth` to be {2 * stages}n + 2 ({known}, ...), but got {depth}.")
    return blocks
