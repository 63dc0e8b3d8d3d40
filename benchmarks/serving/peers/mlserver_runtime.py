"""MLServer: a custom runtime around onnxruntime, with its numpy codec."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from peer_model import load_model


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = load_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {
            one.name: NumpyCodec.decode_input(one).astype(self.model.dtypes[one.name], copy=False)
            for one in payload.inputs
        }
        output = NumpyCodec.encode_output(self.model.output, self.model.run(inputs))
        return InferenceResponse(model_name=self.name, outputs=[output])
