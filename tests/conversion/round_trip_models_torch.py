"""Fifteen small PyTorch architectures that go to ONNX and come back, seeded, with shapes to run them at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # pyright: ignore[reportPrivateUsage]  # registers the operators
from torch.nn import functional

from noa.signatures import Axis, DType, Signature, TensorSpec
from noa_conversion import TorchModel

del _decomposed
B, S = "batch", "seq"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a module is made, what it takes and gives, and the sizes of free axes to try."""

    make: Callable[[], nn.Module]
    inputs: dict[str, tuple[DType, tuple[Axis, ...]]]
    outputs: dict[str, tuple[DType, tuple[Axis, ...]]]
    sizes: tuple[dict[str, int], ...] = ({B: 1}, {B: 3}, {B: 5})
    highest: int = 5
    """Integers are drawn below this."""
    opset: int = 20
    tolerance: float = 2e-5
    """Why the gradient is not compared, if it is not."""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def model(self) -> TorchModel:
        torch.manual_seed(0)
        module = self.make().eval()
        signature = Signature(
            inputs=tuple(TensorSpec(name=name, dtype=d, shape=shape) for name, (d, shape) in self.inputs.items()),
            outputs=tuple(TensorSpec(name=name, dtype=d, shape=shape) for name, (d, shape) in self.outputs.items()),
        )
        return TorchModel(module=module, signature=signature)

    def draw(self, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        drawn: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in self.inputs.items():
            full = [sizes[axis] if isinstance(axis, str) else axis for axis in shape]
            if dtype.startswith("float"):
                drawn[name] = rng.normal(size=full).astype(dtype)
            elif dtype == "bool":
                drawn[name] = rng.random(full) < 0.3
                drawn[name][..., 0] = False  # PyTorch's fast path gives NaN for a row of nothing but padding
            else:
                drawn[name] = rng.integers(0, self.highest, full).astype(dtype)
        return drawn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm_first = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_second = nn.BatchNorm2d(outside)
        self.short = nn.Conv2d(inside, outside, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm_first(self.first(x)))
        return functional.relu(self.norm_second(self.second(hidden)) + self.short(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.ModuleList([Residual(8, 8, 1), Residual(8, 16, 2)])
        self.head = nn.Linear(16, 4)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean, -0.2, 0.2)  # pyright: ignore[reportArgumentType]  # it is a tensor
                nn.init.uniform_(part.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.pool(functional.relu(self.stem(image)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(functional.adaptive_avg_pool2d(hidden, 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(5, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor, is_padding: Tensor) -> Tensor:
        bias = torch.zeros_like(is_padding, dtype=torch.float32).masked_fill(is_padding, -1e4)
        hidden = self.layers(self.embed(tokens), src_key_padding_mask=bias)
        kept = (~is_padding).float()[:, :, None]
        return self.head((hidden * kept).sum(1) / kept.sum(1).clamp(min=1))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.places = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.places
        normed = self.norm(hidden)
        hidden = hidden + self.attention(normed, normed, normed, need_weights=False)[0]
        hidden = hidden + self.mlp(hidden)
        return self.head(hidden[:, 0])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down(image)
        middle = self.middle(functional.max_pool2d(first, 2))
        wide = functional.interpolate(self.up(middle), scale_factor=1.0, mode="nearest")
        return self.out(torch.cat([first, wide], 1))


class Bags(nn.Module):
    """`EmbeddingBag` of rows of known length, with weights per index."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(10, 6, mode="sum")
        self.means = nn.Embedding(10, 6)
        self.head = nn.Linear(12, 3)

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        summed = (functional.embedding(indices, self.bags.weight) * weights[:, :, None]).sum(1)
        return self.head(torch.cat([summed, self.means(indices).mean(1)], 1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6)
        self.point = nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.ConvTranspose1d(6, 3, 4, stride=3, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        hidden = functional.hardswish(self.up(self.point(self.depth(image))))
        return self.line(functional.avg_pool2d(hidden, 2).mean(2))


class Conditional(nn.Module):
    """One branch or the other, by a value: `torch.cond`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: torch.tanh(self.first(v)), lambda v: self.second(v) * 2, (x,))


class Loop(nn.Module):
    """A step for every place along the sequence, with a state, through PyTorch's own `scan`."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(3, 4)
        self.carry = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan  # pyright: ignore[reportPrivateUsage]  # it has no public name yet

        def step(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.inside(row) + self.carry(state))
            return state, state.clone()

        first = torch.zeros_like(x[:, 0, :1]).expand(-1, 4).clone()
        _, states = scan(step, first, x.transpose(0, 1), dim=0)
        return states.transpose(0, 1)


class BrainFloat(nn.Module):
    """Weights stored in bfloat16, computed in 32 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16).to(torch.bfloat16)
        self.down = nn.Linear(16, 3).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(functional.linear(x, self.up.weight.float(), self.up.bias.float()))
        return functional.linear(hidden, self.down.weight.float(), self.down.bias.float())


class GroupedAttention(nn.Module):
    """Four query heads share two heads of keys and values; causal."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16, bias=False)
        self.key = nn.Linear(16, 8, bias=False)
        self.value = nn.Linear(16, 8, bias=False)
        self.out = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq = x.shape[:2]
        query = self.query(x).view(batch, seq, 4, 4).transpose(1, 2)
        key, value = (part(x).view(batch, seq, 2, 4).transpose(1, 2) for part in (self.key, self.value))
        mixed = functional.scaled_dot_product_attention(
            query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, seq, 16))


class Decoder(nn.Module):
    """RMSNorm, rotary places, gated MLP, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.RMSNorm(16)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16, bias=False)
        self.norm_mlp = nn.RMSNorm(16)
        self.gate = nn.Linear(16, 32, bias=False)
        self.up = nn.Linear(16, 32, bias=False)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        batch, seq = tokens.shape
        query, key, value = self.qkv(self.norm(hidden)).view(batch, seq, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = _rotated(query), _rotated(key)
        scores = query @ key.transpose(-1, -2) / 8**0.5
        place = torch.arange(seq)
        scores = scores.masked_fill(place[None, :] > place[:, None], float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, seq, 16)
        hidden = hidden + self.out(mixed)
        normed = self.norm_mlp(hidden)
        hidden = hidden + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return hidden @ self.embed.weight.T


def _rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] * rate
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


class Quantised(nn.Module):
    """Activations and weights pass through 8 bits: quantise, dequantise, multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(functional.linear(_eight_bits(x), _eight_bits(self.first.weight), self.first.bias))
        return functional.linear(_eight_bits(hidden), _eight_bits(self.second.weight), self.second.bias)


def _eight_bits(x: Tensor) -> Tensor:
    """What PyTorch's own quantiser puts into a graph."""
    steps = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.03, 0, -128, 127, torch.int8)
    return torch.ops.quantized_decomposed.dequantize_per_tensor(steps, 0.03, 0, -128, 127, torch.int8)


_ROWS: dict[str, tuple[DType, tuple[Axis, ...]]] = {"x": ("float32", (B, 6))}
_SEQUENCE: dict[str, tuple[DType, tuple[Axis, ...]]] = {"x": ("float32", (B, 7, 5))}
_TWO = ({B: 1, S: 4}, {B: 3, S: 7}, {B: 2, S: 2})
_THREE: dict[str, tuple[DType, tuple[Axis, ...]]] = {"y": ("float32", (B, 3))}

ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(make=Mlp, inputs=_ROWS, outputs=_THREE),
    "resnet": Architecture(
        make=ResNet, inputs={"image": ("float32", (B, 3, 12, 12))}, outputs={"logits": ("float32", (B, 4))}
    ),
    "lstm": Architecture(make=lambda: Recurrent(nn.LSTM), inputs=_SEQUENCE, outputs=_THREE),
    "gru": Architecture(make=lambda: Recurrent(nn.GRU), inputs=_SEQUENCE, outputs=_THREE),
    "transformer encoder": Architecture(
        make=Encoder,
        inputs={"tokens": ("int64", (B, S)), "is_padding": ("bool", (B, S))},
        outputs={"logits": ("float32", (B, 4))},
        sizes=_TWO,
        highest=20,
    ),
    "vit": Architecture(
        make=Vit, inputs={"image": ("float32", (B, 3, 16, 16))}, outputs={"logits": ("float32", (B, 5))}
    ),
    "unet": Architecture(
        make=UNet, inputs={"image": ("float32", (B, 1, 12, 12))}, outputs={"mask": ("float32", (B, 2, 12, 12))}
    ),
    "embedding bag": Architecture(
        make=Bags, inputs={"indices": ("int64", (B, 4)), "weights": ("float32", (B, 4))}, outputs=_THREE, highest=10
    ),
    "depthwise and transposed convolution": Architecture(
        make=Depthwise, inputs={"image": ("float32", (B, 6, 8, 8))}, outputs={"line": ("float32", (B, 3, 25))}
    ),
    "conditional": Architecture(
        make=Conditional, inputs={"x": ("float32", (B, 4))}, outputs={"y": ("float32", (B, 4))}
    ),
    "loop": Architecture(make=Loop, inputs={"x": ("float32", (B, 5, 3))}, outputs={"states": ("float32", (B, 5, 4))}),
    "bf16 storage": Architecture(make=BrainFloat, inputs=_ROWS, outputs=_THREE),
    "grouped attention": Architecture(
        make=GroupedAttention,
        inputs={"x": ("float32", (B, S, 16))},
        outputs={"y": ("float32", (B, S, 16))},
        sizes=_TWO,
    ),
    "decoder": Architecture(
        make=Decoder,
        inputs={"tokens": ("int64", (B, S))},
        outputs={"logits": ("float32", (B, S, 20))},
        sizes=_TWO,
        highest=20,
        tolerance=1e-4,
    ),
    "quantised": Architecture(make=Quantised, inputs=_ROWS, outputs=_THREE),
}
