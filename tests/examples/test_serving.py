"""Tests of the serving example: Omniglot, bin/export.py, a Triton server, clients of two kinds.

They need the server's own environment, which examples/serving/make_environment.sh creates.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from tests.omniglot import OMNIGLOT

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serving"
PYTHON = EXAMPLE / ".venv" / "bin" / "python"
FAILURE = EXAMPLE / "environment_failed.log"


def why_not():
    """Returns the reason for which the server cannot be started here, empty if it can."""
    if FAILURE.exists():
        return f"make_environment.sh failed: {FAILURE.read_text().strip().splitlines()[-1]}"
    if not PYTHON.exists():
        return "there is no environment for the server; run examples/serving/make_environment.sh"
    return "" if OMNIGLOT else "Omniglot is not on this machine"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SMALL = [
    "alphabet_splits.train_alphabets = 3",
    "alphabet_splits.validation_alphabets = 1",
    "alphabet_splits.test_alphabets = 3",
    "alphabet_splits.rotations = 1",
    "conv_net.filters = 8",
    "MetaTrainer.steps_per_task = 30",
    "MetaTrainer.meta_batch_size = 3",
    "meta_train.meta_steps = 4",
    "meta_train.validation_freq = 4",
    "evaluate.baseline = False",
    "export.requests = 3",
]


def binary(name, folder, *options):
    command = [sys.executable, str(ROOT / "bin" / name), f"--output_dir={folder}", *options]
    command.append(f"--data_dir={OMNIGLOT}")
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that was evaluated again and exported."""
    folder = tmp_path_factory.mktemp("runs") / "omniglot"
    bindings = [f"--gin_param={binding}" for binding in SMALL]
    binary("train.py", folder, f"--gin_file={ROOT / 'gin_configs' / 'omniglot_cpu.gin'}", *bindings)
    binary("evaluate.py", folder)
    binary("export.py", folder)
    return folder


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def addresses(run, tmp_path_factory):
    """Where the server answers, by protocol."""
    http, grpc = free_ports(2)
    log = tmp_path_factory.mktemp("server") / "log"
    command = [PYTHON, EXAMPLE / "server.py", f"--saved_model={run / 'export' / 'saved_model'}"]
    command += [f"--http_port={http}", f"--grpc_port={grpc}"]
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    yield {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"}
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # the server has a session of its own


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_gets_the_accuracy_that_evaluate_reports(run, addresses, protocol):
    record = json.loads((run / "evaluation_again.json").read_text())
    requests = sorted((run / "export" / "requests").glob("*.npz"))
    command = [PYTHON, EXAMPLE / "client.py", *requests]
    command += [f"--protocol={protocol}", f"--address={addresses[protocol]}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    printed = re.findall(r"(\w+)\.npz: +(\d+) steps, accuracy ([\d.]+)", result.stdout)
    accuracies = {(name, int(steps)): accuracy for name, steps, accuracy in printed}
    tasks = record["results"]["learned initialization"]["tasks"]
    assert len(tasks) == len(requests) == 3
    for task in tasks:
        name = re.sub(r"[^A-Za-z0-9]+", "_", task["name"]).strip("_")
        assert accuracies[name, 30] == f"{1 - task['error']:.4f}"
        assert float(accuracies[name, 0]) < float(accuracies[name, 30])


MISUSE = """
import sys
import numpy as np
from client import Server

server = Server(*sys.argv[1:3])
request = dict(np.load(sys.argv[3]))
del request["query_y"]
for name, value in (
    ("support_y", request["support_y"] + 7),
    ("support_x", request["support_x"][:, :14]),
    ("query_x", request["query_x"][:0]),
    ("steps", np.int32(-1)),
    ("learning_rate", np.float32(-1)),
):
    try:
        server.call("adapt_uint8", **(request | {name: value}))
    except Exception as error:
        assert name in str(error), (name, str(error))
    else:
        raise AssertionError(f"{name} was not refused")
"""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_wrong_requests_are_refused_by_the_name_of_the_input(run, addresses, protocol):
    request = next((run / "export" / "requests").glob("*.npz"))
    result = subprocess.run(
        [PYTHON, "-c", MISUSE, protocol, addresses[protocol], request],
        capture_output=True,
        text=True,
        cwd=EXAMPLE,
    )
    assert result.returncode == 0, result.stderr
