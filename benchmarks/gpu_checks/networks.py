"""The networks of the jobs, in plain torch. The file is copied beside the jobs, where workers import it."""

from __future__ import annotations

import resource
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXPANSION = 4
_CLASSES = 1000


class Bottleneck(nn.Module):
    """Three convolutions around which the input goes as well: He et al., 2016."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * _EXPANSION
        self.reduce, self.norm1 = nn.Conv2d(given, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.expand, self.norm3 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or given != wide:
            self.around = nn.Sequential(nn.Conv2d(given, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        """Compute (rows, channels, height, width)."""
        y = functional.relu(self.norm1(self.reduce(x)))
        y = functional.relu(self.norm2(self.conv(y)))
        return functional.relu(self.norm3(self.expand(y)) + self.around(x))


class ResNet(nn.Module):
    """ResNet-50 where the stages have (3, 4, 6, 3) blocks of 64 channels and more."""

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        given = width
        for stage, count in enumerate(blocks):
            for at in range(count):
                layers.append(Bottleneck(given, width << stage, 2 if stage and not at else 1))
                given = (width << stage) * _EXPANSION
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(given, _CLASSES)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (rows, 1000) of images: bytes, or numbers that are normalized already."""
        x = pixels
        if not pixels.is_floating_point():
            x = (pixels.to(self.head.weight.dtype) / 255 - self.mean) / self.std
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 3, 2, padding=1)
        return self.head(self.layers(x).mean((2, 3)))


def resnet(blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64) -> ResNet:
    """Return a ResNet with weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = ResNet(blocks, width)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # What a block adds is small, so that numbers do not grow from block to block.
                nn.init.constant_(module.norm3.weight, 0.3)
    return network


class Layers(nn.Module):
    """A square layer with tanh, `repeats` times over: kernels that last as long as one likes.

    Each adds little, so that neither do rows become alike, nor do last bits grow.
    """

    def __init__(self, width: int, repeats: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self._repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, width)."""
        for _ in range(self._repeats):
            x = x + torch.tanh(self.inner(x)) / self._repeats
        return x


def layers(width: int, repeats: int) -> Layers:
    """Return layers with weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Layers(width, repeats)


class Hungry(nn.Module):
    """y = 2 x, by way of so many bytes of scratch memory for each row."""

    def __init__(self, row_bytes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self._width = row_bytes // 4

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows,)."""
        scratch = torch.empty(len(x), self._width, dtype=x.dtype, device=x.device)
        scratch[:, -1] = x
        return scratch[:, -1] * self.weight


def hungry(row_bytes: int, limit_bytes: int, device: str) -> Hungry:
    """Return a hungry model, in a process that gets no more than `limit_bytes` besides what it has."""
    _limit(limit_bytes, device)
    return Hungry(row_bytes)


def hungry_resnet(
    limit_bytes: int, device: str, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64
) -> ResNet:
    """Return a ResNet in a process that gets no more than `limit_bytes` of a GPU."""
    _limit(limit_bytes, device)
    return resnet(blocks, width)


def _limit(limit_bytes: int, device: str) -> None:
    """Limit a GPU's memory, or the address space of a process that computes on the CPU."""
    if device != "cpu":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / whole, 1.0))
        return
    with open("/proc/self/statm") as file:  # noqa: PTH123 - as short as it reads best
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
