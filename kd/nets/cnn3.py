"""The small plain convolutional student."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd import check
from kd.nets import arguments


class CNN3(nn.Module):
    """Three stages of 3x3 convolution (padding 1), ReLU and 2x2 max pool, then two linear layers.

    Taps: `layer1` (B, width[0], H/2, W/2), `layer2` (B, width[1], H/4, W/4), `layer3` (B, width[2], H/8, W/8), and
    `fc1` (B, hidden) before its ReLU. With the default widths and a 3x32x32 image the layout is 3-64-128-256 and
    4096-128-10: 896,522 parameters, 40.0 M multiply-accumulates, the "simple CNN" of CIFAR-10 distillation studies.
    """

    def __init__(
        self,
        width: Sequence[int] = (64, 128, 256),
        hidden: int = 128,
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        channels, height, image_width = arguments.shape(image_shape, low=8)  # three pools halve it three times
        first, second, third = arguments.widths("width", width, shortest=3, longest=3)
        hidden = check.integer("hidden", hidden, low=1)
        self.layer1 = _stage(channels, first)
        self.layer2 = _stage(first, second)
        self.layer3 = _stage(second, third)
        self.fc1 = nn.Linear(third * (height // 8) * (image_width // 8), hidden)
        self.fc2 = nn.Linear(hidden, check.integer("num_classes", num_classes, low=1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(image)))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(), pool=nn.MaxPool2d(2)))
