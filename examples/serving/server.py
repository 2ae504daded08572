"""Serves every signature of a SavedModel with NVIDIA Triton, over HTTP and gRPC (KServe v2).

    .venv/bin/python server.py --saved_model=../../runs/unicode/export/saved_model

Each signature is a Triton model of its name. Neither Keras nor leap_tf is in this environment.
Numbers without dimensions, which Triton does not know, are sent and returned as arrays of one.
"""

import argparse
import os
import sys
import sysconfig

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The processes that PyTriton starts for a model wait one second for each other. This is too short
# on a busy machine and cannot be changed.
ATTEMPTS = 5


class StartError(RuntimeError):
    """Triton could not load a model."""


def find_python_library():
    """Restarts this program so that Triton's Python backend finds libpython, if necessary."""
    folder = sysconfig.get_config_var("LIBDIR")
    present = os.environ.get("LD_LIBRARY_PATH", "")
    if folder not in present.split(":"):
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{present}".rstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.argv])


def bind(triton, name, function, instances):
    """Adds a signature to the server as a Triton model.

    Args:
        triton: the server.
        name: name of the signature.
        function: the signature itself.
        instances: how many requests it answers at the same time.
    """
    import numpy as np
    import tensorflow as tf
    from pytriton.exceptions import PyTritonRuntimeError
    from pytriton.model_config import ModelConfig, Tensor

    inputs = function.structured_input_signature[1]

    def described(specs):
        return [
            Tensor(
                name=key,
                dtype=spec.dtype.as_numpy_dtype,
                shape=tuple(-1 if size is None else size for size in spec.shape) or (1,),
            )
            for key, spec in specs.items()
        ]

    def answer(request):
        feed = {
            key: tf.constant(request[key].reshape(()) if spec.shape.rank == 0 else request[key])
            for key, spec in inputs.items()
        }
        try:
            answers = function(**feed)
        except tf.errors.InvalidArgumentError as error:
            reason = [line for line in error.message.splitlines() if "assertion failed" in line]
            raise PyTritonRuntimeError("\n".join(reason) or error.message) from None
        return {key: np.atleast_1d(value.numpy()) for key, value in answers.items()}

    def infer(requests):
        return [answer(request) for request in requests]

    triton.bind(
        model_name=name,
        infer_func=[infer] * instances,
        inputs=described(inputs),
        outputs=described(function.structured_outputs),
        config=ModelConfig(batching=False),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saved_model", required=True, help="The export's saved_model folder.")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--http_port", type=int, default=8000)
    parser.add_argument("--grpc_port", type=int, default=8001)
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count(), help="Requests answered at the same time."
    )
    options = parser.parse_args()
    find_python_library()

    import tensorflow as tf

    # As in training: one thread a task, and as many tasks as cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(options.parallel)
    signatures = tf.saved_model.load(options.saved_model).signatures
    for left in reversed(range(ATTEMPTS)):
        try:
            serve(signatures, options)
            return
        except StartError as error:
            if not left:
                raise
            print(f"Starting again, since Triton did not come up: {error}", file=sys.stderr)


def serve(signatures, options):
    """Serves until the process is stopped.

    Raises:
        StartError: Triton could not load a model.
    """
    from pytriton.triton import Triton, TritonConfig
    from tritonclient.utils import InferenceServerException

    config = TritonConfig(
        http_address=options.address,
        http_port=options.http_port,
        grpc_address=options.address,
        grpc_port=options.grpc_port,
        allow_metrics=False,
        exit_timeout_secs=5,
    )
    with Triton(config=config) as triton:
        try:
            for name, function in signatures.items():
                bind(triton, name, function, options.parallel)
        except InferenceServerException as error:
            raise StartError(str(error).splitlines()[0]) from error
        triton.serve()


if __name__ == "__main__":
    main()
