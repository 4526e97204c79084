"""VGG networks with batch norm, for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments
from kd.nets.init import he
from kd.nets.mlp import dense

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # per stage: table 1 of 1409.1556, columns A, B, D, E; 8 is the distillation literature's
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Five stages of [3x3 convolution with bias, BN, ReLU], a global average pool, and a classifier.

    Simonyan and Zisserman 2015 (1409.1556) with batch norm. A 2x2 max pool follows each of the first `pools` stages:

    - `pools=5`, `classifier=[]`: the usual CIFAR network, 512 features at 1x1 and one linear layer;
    - `pools=5`, `classifier=[4096, 4096]`: the paper's three linear layers, with ReLU and dropout after the first two
      (the layout of the public CIFAR-10 checkpoint collections);
    - `pools=3`, `classifier=[]`: the distillation tables' (since CRD, 1910.10699). The last two stages both work at an
      eighth of the image's size: at 3x32x32, on 4x4 maps.

    Taps: `block0` (B, 64, H, W), `block1` (B, 128, H/2, W/2), ... `block4` (B, 512, ...) before their pools, `pool0`
    ... `pool4` after them (where there is no pool, the same again); `flatten` (B, 512) is the embedding.
    """

    def __init__(
        self,
        depth: int,
        pools: int = 5,
        classifier: Sequence[int] = (),
        dropout: float = 0.5,
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        if check.integer("depth", depth) not in CONVOLUTIONS:
            raise ConfigError(f"Expected `depth` to be one of {', '.join(map(str, CONVOLUTIONS))}, but got {depth}.")
        pools = check.integer("pools", pools, high=5)
        dropout = check.number("dropout", dropout, low=0, high=1)
        channels = arguments.shape(image_shape, low=2**pools)[0]
        sizes = [WIDTHS[-1], *arguments.widths("classifier", classifier)]

        for i, (width, convolutions) in enumerate(zip(WIDTHS, CONVOLUTIONS[depth], strict=True)):
            self.add_module(f"block{i}", _block(channels, width, convolutions))
            self.add_module(f"pool{i}", nn.MaxPool2d(2) if i < pools else nn.Identity())
            channels = width
        self.classifier = dense(sizes, dropout)
        self.fc = nn.Linear(sizes[-1], check.integer("num_classes", num_classes, low=1))
        he(self)
        # 0.01 is torchvision's, and that of the published distillation tables; the paper has a variance of 0.01.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for i in range(len(WIDTHS)):
            x = self.get_submodule(f"block{i}")(x)
            x = self.get_submodule(f"pool{i}")(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.fc(self.classifier(x))
        return logits


def _block(channels: int, width: int, convolutions: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(convolutions):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        channels = width
    return nn.Sequential(layers)
