"""Adapts a served model to a task it has never seen, and prints accuracy before and after.

    .venv/bin/python client.py ../../runs/unicode/export/requests/*.npz --protocol=grpc

A request's file holds the inputs of the signature `adapt` and the right answers, as `query_y`;
`bin/export.py` writes some. Nothing but NumPy and Triton's client library is used.
"""

import argparse
import importlib
import time

import numpy as np

PORTS = {"http": 8000, "grpc": 8001}


class Server:
    """A Triton server, over one of its protocols.

    Args:
        protocol: "http" or "grpc".
        address: host and port.
        patience: seconds to wait for a signature to come up.
    """

    def __init__(self, protocol: str, address: str, patience: float = 120.0):
        self._library = importlib.import_module(f"tritonclient.{protocol}")
        seconds = {"network_timeout": 600.0} if protocol == "http" else {}
        self._client = self._library.InferenceServerClient(address, **seconds)
        self._patience = patience
        self._ready: set[str] = set()

    def call(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature, by name; waits for it the first time."""
        from tritonclient.utils import np_to_triton_dtype

        self.wait_for(signature)
        tensors = []
        for name, value in inputs.items():
            array = np.atleast_1d(value)
            if not array.size:  # PyTriton cannot carry these, and its error does not say so
                raise ValueError(f"{name}: there must be at least one example")
            tensor = self._library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        result = self._client.infer(signature, tensors)
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [each["name"] if isinstance(each, dict) else each.name for each in outputs]
        return {name: result.as_numpy(name) for name in names}

    def wait_for(self, signature: str) -> None:
        """Waits until the server has loaded a signature."""
        give_up = time.monotonic() + self._patience
        while signature not in self._ready:
            try:
                if self._client.is_server_ready() and self._client.is_model_ready(signature):
                    self._ready.add(signature)
            except (OSError, self._library.InferenceServerException) as error:
                if time.monotonic() > give_up:
                    raise SystemExit(f"The server does not answer: {error}") from None
            if signature not in self._ready and time.monotonic() > give_up:
                raise SystemExit(f"The server has no signature {signature!r}.")
            time.sleep(0.0 if signature in self._ready else 0.2)


def adapt(server: Server, request: dict[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """Returns the answers of a model that is adapted with some gradient steps."""
    inputs = {name: value for name, value in request.items() if name != "query_y"}
    return server.call(signature_for(request), **(inputs | {"steps": np.int32(steps)}))


def signature_for(request: dict[str, np.ndarray]) -> str:
    """Returns the name of the signature that takes inputs of the request's dtype."""
    return "adapt_uint8" if request["query_x"].dtype == np.uint8 else "adapt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requests", nargs="+", help="Files of requests.")
    parser.add_argument("--protocol", choices=PORTS, default="http")
    parser.add_argument("--address", help="Host and port; the server's default on this machine.")
    options = parser.parse_args()
    server = Server(options.protocol, options.address or f"127.0.0.1:{PORTS[options.protocol]}")
    for file in options.requests:
        request = dict(np.load(file, allow_pickle=False))
        server.wait_for(signature_for(request))
        for steps in (0, int(request["steps"])):
            started = time.perf_counter()
            answers = adapt(server, request, steps)
            milliseconds = 1e3 * (time.perf_counter() - started)
            accuracy = np.mean(answers["probabilities"].argmax(-1) == request["query_y"])
            print(f"{file}: {steps:4} steps, accuracy {accuracy:.4f}, {milliseconds:.0f} ms")


if __name__ == "__main__":
    main()
