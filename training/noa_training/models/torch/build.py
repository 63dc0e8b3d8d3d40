"""Build any of the built-in models in PyTorch."""

from __future__ import annotations

from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.cnn import Cnn
from noa_training.models.decoder_lm import DecoderLm
from noa_training.models.library import BuiltIn
from noa_training.models.mlp import Mlp
from noa_training.models.recurrent import Recurrent
from noa_training.models.resnet import ResNet
from noa_training.models.tabular_resnet import TabularResNet
from noa_training.models.torch.cnn import TorchCnn
from noa_training.models.torch.decoder_lm import TorchDecoderLm
from noa_training.models.torch.mlp import TorchMlp
from noa_training.models.torch.recurrent import TorchRecurrent
from noa_training.models.torch.resnet import TorchResNet
from noa_training.models.torch.tabular_resnet import TorchTabularResNet
from noa_training.models.torch.transformer_encoder import TorchTransformerEncoder
from noa_training.models.torch.vision_transformer import TorchVit
from noa_training.models.transformer_encoder import TransformerEncoder
from noa_training.models.vision_transformer import Vit


def build_torch(model: BuiltIn, shape: ModelShape) -> nn.Module:
    """Return the module with torch's own random weights; the engine sets them from `initial_weights`."""
    match model:
        case Mlp():
            return TorchMlp(model, shape)
        case Cnn():
            return TorchCnn(model, shape)
        case ResNet():
            return TorchResNet(model, shape)
        case TabularResNet():
            return TorchTabularResNet(model, shape)
        case Recurrent():
            return TorchRecurrent(model, shape)
        case TransformerEncoder():
            return TorchTransformerEncoder(model, shape)
        case Vit():
            return TorchVit(model, shape)
        case DecoderLm():
            return TorchDecoderLm(model, shape)
