"""The models that `bench_conversion` converts, as one writes them in PyTorch, with seeded weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from noa.signatures import Signature, TensorSpec

FEATURES, HIDDEN, CLASSES = 256, 1024, 10
WIDTHS, IMAGE = (32, 64, 128), 64
MODEL, HEADS, SEQ, LAYERS = 256, 4, 64, 4


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )


class Block(nn.Module):
    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inside, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        inside = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.ModuleList(Block(inside[at], width, 1 + (at > 0)) for at, width in enumerate(WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(MODEL), nn.LayerNorm(MODEL)
        self.qkv, self.out = nn.Linear(MODEL, 3 * MODEL), nn.Linear(MODEL, MODEL)
        self.up, self.down = nn.Linear(MODEL, 4 * MODEL), nn.Linear(4 * MODEL, MODEL)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        query, key, value = (
            part.reshape(batch, seq, HEADS, MODEL // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, seq, MODEL))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def transformer() -> nn.Module:
    return nn.Sequential(*(EncoderLayer() for _ in range(LAYERS)), nn.LayerNorm(MODEL))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "MLP": (mlp, (FEATURES,), (CLASSES,)),
    "ResNet": (ResNet, (3, IMAGE, IMAGE), (CLASSES,)),
    "transformer": (transformer, (SEQ, MODEL), (SEQ, MODEL)),
}
"""By name: the module, the shape of one sample and of its output."""


def build(name: str) -> nn.Module:
    """Return the module in evaluation mode; the same weights every time."""
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def export(name: str, folder: Path) -> Path:
    """Write the module as ONNX, the batch free, with noa's exporter; returns the file."""
    from noa.settings import ConversionSettings
    from noa_conversion import TorchModel
    from noa_conversion.exporters import torch_to_onnx

    _, sample, output = MODELS[name]
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", *sample)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", *output)),),
    )
    torch_to_onnx.export(TorchModel(module=build(name), signature=signature), folder, ConversionSettings())
    return folder / "model.onnx"
