"""MLServer: a custom runtime for the perceptron, else its MLflow runtime; called in the server's own process."""

import asyncio
import os

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver_mlflow import MLflowRuntime
from workload import load_model


class Digits(MLModel):
    """The perceptron."""

    async def load(self) -> bool:
        """Load the model."""
        self.model = load_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify a request's samples."""
        samples = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        classes = np.array(self.model.run([samples])[0]["prediction"])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("class", classes)])


async def main() -> None:
    """Serve until told to stop."""
    ports = {"http_port": int(os.environ["BENCH_PORT"]), "grpc_port": int(os.environ["BENCH_SPARE_PORT"])}
    settings = Settings(
        host="127.0.0.1",
        **ports,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        use_structured_logging=False,
    )
    server = MLServer(settings)
    model = ModelSettings(name="digits", implementation=Digits)
    if os.environ["BENCH_WORKLOAD"] != "perceptron":
        parameters = ModelParameters(uri=os.environ["BENCH_MODEL_URI"])
        model = ModelSettings(name="bench", implementation=MLflowRuntime, parameters=parameters)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
