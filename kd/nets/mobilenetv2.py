"""MobileNetV2 for small images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.init import he
from kd.nets.layers import conv_bn

STEM = 32
STAGES = (  # (channels, blocks) of each row of table 2 of 1801.04381, in stages of one image size
    ((16, 1), (24, 2)),
    ((32, 3),),
    ((64, 4), (96, 3)),
    ((160, 3), (320, 1)),
)
HEAD = 1280


class MobileNetV2(nn.Module):
    """Inverted residual blocks, whose outputs are narrow and have no ReLU: Sandler et al. 2018 (1801.04381).

    A 3x3 stem with stride 2, four stages of which the later three halve the image, a 1x1 convolution to 1280 channels,
    global average pool and one linear layer. `width` multiplies every number of channels, but the 1280 only where it
    is above 1; `expansion` is how much wider a block is inside, the very first block excepted.

    `width=0.5` is the network of the distillation tables since CRD (1910.10699). They depart from the paper so that
    it fits 3x32x32: the blocks of 24 channels do not halve the image, ReLU stands for ReLU6, and the first block has a
    1x1 convolution in front although it does not expand.

    Taps, with w = width: `relu` (B, 32w, H/2, W/2) is the stem; `layer1` (B, 24w, H/2, W/2), `layer2` (B, 32w, H/4,
    W/4), `layer3` (B, 96w, H/8, W/8), `layer4` (B, 320w, H/16, W/16), none with a ReLU; `relu_1` (B, 1280, H/16, W/16)
    is the last map; `flatten` (B, 1280) is the embedding.
    """

    def __init__(self, width: float = 1.0, expansion: int = 6, *, num_classes: int, image_shape: Sequence[int]) -> None:
        super().__init__()
        width = check.number("width", width, above=0)
        expansion = check.integer("expansion", expansion, low=1)
        channels = _scaled(STEM, width)
        self.stem = conv_bn(arguments.shape(image_shape)[0], channels, 3, stride=2)
        for number, rows in enumerate(STAGES, start=1):
            blocks: list[nn.Module] = []
            for channels_out, repeats in rows:
                for _ in range(repeats):
                    stride = 2 if number > 1 and not blocks else 1
                    widening = expansion if number > 1 or blocks else 1
                    blocks.append(InvertedResidual(channels, _scaled(channels_out, width), stride, widening))
                    channels = _scaled(channels_out, width)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        embedding = _scaled(HEAD, max(width, 1.0))
        self.head = conv_bn(channels, embedding, 1)
        self.fc = nn.Linear(embedding, check.integer("num_classes", num_classes, low=1))
        he(self)
        nn.init.normal_(self.fc.weight, std=0.01)  # as the distillation tables' code
        nn.init.zeros_(self.fc.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = F.relu(self.head(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a narrowing 1x1 convolution: table 1 of 1801.04381.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H/stride), ceil(W/stride)); each convolution has its batch norm,
    the first two a ReLU after it. The input is added where the shape stays.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = conv_bn(channels_in, inner, 1)
        self.depthwise = conv_bn(inner, inner, 3, stride=stride, groups=inner)
        self.project = conv_bn(inner, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.depthwise(F.relu(self.expand(x))))
        output: Tensor = self.project(inner)
        return x + output if self.residual else output


def _scaled(channels: int, width: float) -> int:
    scaled = int(channels * width)
    if scaled < 1:
        raise ConfigError(f"Expected `width` to leave at least one of {channels} channels, but got {width:g}.")
    return scaled
