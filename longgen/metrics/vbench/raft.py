"""RAFT optical flow (Teed & Deng, 2003.12039), the network that VBench measures motion with.

Written here because torchvision's `raft_large` needs a torchvision built for the torch that is here, and one that is not breaks
other libraries too. Parameters bear the names of github.com/princeton-vl/RAFT, so that raft-things.pth loads as it is;
torchvision's raft_large_C_T_V1, which it documents as ported from there, loads too.

Legend: B pairs; H, W pixels, multiples of 8; h, w = H/8, W/8; xy last axis or channel, x first.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from longgen.errors import LonggenError
from longgen.metrics.vbench import weights

ITERATIONS = 20  # of the update, as VBench has it
LEAST_PX = 121  # of a side: one less, and the coarsest of the four correlation levels is a single cell, which gives nan
LEVELS, RADIUS = 4, 4
_TORCHVISION = (  # its names, and ours
    (r"^feature_encoder", "fnet"), (r"^context_encoder", "cnet"), (r"net\.convnormrelu\.0", "net.conv1"),
    (r"net\.convnormrelu\.1", "net.norm1"), (r"net\.conv\.", "net.conv2."), (r"convnormrelu(\d)\.0", r"conv\1"),
    (r"convnormrelu(\d)\.1", r"norm\1"), (r"motion_encoder\.conv\.0", "encoder.conv"),
    (r"motion_encoder\.convcorr(\d)\.0", r"encoder.convc\1"), (r"motion_encoder\.convflow(\d)\.0", r"encoder.convf\1"),
    (r"recurrent_block\.convgru(\d)\.conv(\w)", r"gru.conv\2\1"), (r"^mask_predictor\.convrelu\.0", "update_block.mask.0"),
    (r"^mask_predictor\.conv", "update_block.mask.2"),
)  # fmt: skip


class Raft(nn.Module):
    """Two frames [B, 3, H, W] from 0 to 255 -> flow [B, 2, H, W] in pixels, from the first to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = Encoder(256, nn.InstanceNorm2d)
        self.cnet = Encoder(256, nn.BatchNorm2d)
        self.update_block = Update()

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        first, second = (2 * (frame / 255) - 1 for frame in (first, second))
        correlation = Correlation(*self.fnet(torch.cat([first, second])).chunk(2))
        state, context = self.cnet(first).chunk(2, dim=1)
        state, context = torch.tanh(state), torch.relu(context)
        start = _places(state)
        place = start.expand(len(first), -1, -1, -1)
        for _ in range(ITERATIONS):
            state, step = self.update_block(state, context, correlation(place), place - start)
            place = place + step
        return upsampled(place - start, 0.25 * self.update_block.mask(state))


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.downsample = None if stride == 1 else nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), norm(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        return torch.relu((x if self.downsample is None else self.downsample(x)) + y)


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, channels, h, w]"""

    def __init__(self, channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, 2, padding=3), norm(64)
        self.layer1 = nn.Sequential(Residual(64, 64, 1, norm), Residual(64, 64, 1, norm))
        self.layer2 = nn.Sequential(Residual(64, 96, 2, norm), Residual(96, 96, 1, norm))
        self.layer3 = nn.Sequential(Residual(96, 128, 2, norm), Residual(128, 128, 1, norm))
        self.conv2 = nn.Conv2d(128, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.layer3(self.layer2(self.layer1(torch.relu(self.norm1(self.conv1(x)))))))


class Correlation:
    """The products of every two feature vectors [B, C, h, w], in LEVELS sizes, looked up around a place."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        batch, channels, height, width = first.shape
        products = first.flatten(2).transpose(1, 2) @ second.flatten(2) / channels**0.5
        level = products.reshape(batch * height * width, 1, height, width)
        self._levels = [level]
        for _ in range(LEVELS - 1):
            level = F.avg_pool2d(level, 2)
            self._levels.append(level)

    def __call__(self, place: torch.Tensor) -> torch.Tensor:
        """place [B, 2, h, w] in cells of the first level -> [B, LEVELS (2 RADIUS + 1)^2, h, w], bilinear, 0 outside."""
        batch, _, height, width = place.shape
        offset = torch.arange(-RADIUS, RADIUS + 1, device=place.device, dtype=place.dtype)
        window = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1)  # its first axis is x, as the weights have it
        centre = place.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        found = []
        for number, level in enumerate(self._levels):
            size = torch.tensor([level.shape[3] - 1, level.shape[2] - 1], device=place.device)
            grid = 2 * (centre / 2**number + window) / size - 1
            found.append(F.grid_sample(level, grid, align_corners=True).reshape(batch, height, width, -1))
        return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


class Motion(nn.Module):
    """Correlations [B, 324, h, w] and flow [B, 2, h, w] -> [B, 128, h, w]"""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(256, 126, 3, padding=1)

    def forward(self, correlations: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.convc2(torch.relu(self.convc1(correlations))))
        moved = torch.relu(self.convf2(torch.relu(self.convf1(flow))))
        return torch.cat([torch.relu(self.conv(torch.cat([seen, moved], dim=1))), flow], dim=1)


class Gru(nn.Module):
    """A convolutional GRU along rows, then along columns. State [B, 128, h, w], x [B, 256, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        for number, kernel, padding in ((1, (1, 5), (0, 2)), (2, (5, 1), (2, 0))):
            for gate in "zrq":
                self.add_module(f"conv{gate}{number}", nn.Conv2d(384, 128, kernel, padding=padding))

    def forward(self, state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for convz, convr, convq in ((self.convz1, self.convr1, self.convq1), (self.convz2, self.convr2, self.convq2)):
            both = torch.cat([state, x], dim=1)
            update, reset = torch.sigmoid(convz(both)), torch.sigmoid(convr(both))
            state = (1 - update) * state + update * torch.tanh(convq(torch.cat([reset * state, x], dim=1)))
        return state


class FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(128, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(torch.relu(self.conv1(x)))


class Update(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru, self.flow_head = Motion(), Gru(), FlowHead()
        self.mask = nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 64 * 9, 1))

    def forward(
        self, state: torch.Tensor, context: torch.Tensor, correlations: torch.Tensor, flow: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next state, and what to add to the flow."""
        state = self.gru(state, torch.cat([context, self.encoder(correlations, flow)], dim=1))
        return state, self.flow_head(state)


def upsampled(flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """flow [B, 2, h, w], mask [B, 576, h, w] -> [B, 2, H, W]: each pixel a convex mean of the nine cells around its own."""
    batch, _, height, width = flow.shape
    share = torch.softmax(mask.view(batch, 1, 9, 8, 8, height, width), dim=2)
    cells = F.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    return (share * cells).sum(dim=2).permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


def padded(frames: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Frames [B, 3, any, any] with their edges repeated up to multiples of 8, and where in it the frames are."""
    height, width = frames.shape[2:]
    more_h, more_w = -height % 8, -width % 8
    top, left = more_h // 2, more_w // 2
    wide = F.pad(frames, (left, more_w - left, top, more_h - top), mode="replicate")
    return wide, (slice(top, top + height), slice(left, left + width))


def load(path: Path, device: str) -> Raft:
    """From raft-things.pth or torchvision's raft_large_C_T_V1-22a6c225.pth."""
    state = weights.read(path)
    if any(name.startswith("feature_encoder") for name in state):
        state = {_renamed(name): tensor for name, tensor in state.items()}
    network = Raft()
    try:
        network.load_state_dict({name: tensor for name, tensor in state.items() if ".norm3." not in name})  # downsample.1 again
    except RuntimeError as error:
        raise LonggenError(f"{path} does not hold RAFT's weights: {str(error).splitlines()[-1].strip()}", do="download it again",
                           accepted="raft-things.pth or raft_large_C_T_V1-22a6c225.pth as published") from None  # fmt: skip
    return network.to(device).eval()


def _renamed(name: str) -> str:
    for pattern, ours in _TORCHVISION:
        name = re.sub(pattern, ours, name)
    return name


def _places(cells: torch.Tensor) -> torch.Tensor:
    """[1, 2, h, w]: the x and y of every cell of `cells` [B, C, h, w]."""
    y, x = torch.meshgrid(*(torch.arange(length, device=cells.device) for length in cells.shape[2:]), indexing="ij")
    return torch.stack([x, y])[None].float()
