"""Measures a server under load: several clients at a time, each waiting for its answers.

    .venv/bin/python load.py request.npz --signature=adapt_uint8 --clients=4 --calls=100

Prints one line of JSON: the seconds of every call, and of all together.
"""

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from client import PORTS, Server


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("request", help="The inputs of the signature, as an .npz file.")
    parser.add_argument("--signature", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--calls", type=int, default=100, help="Calls of all clients together.")
    parser.add_argument("--protocol", choices=PORTS, default="http")
    parser.add_argument("--address", help="Host and port; the server's default on this machine.")
    options = parser.parse_args()
    address = options.address or f"127.0.0.1:{PORTS[options.protocol]}"
    inputs = dict(np.load(options.request, allow_pickle=False))
    everybody = threading.Barrier(options.clients)

    def serve_client(number):
        # A connection belongs to the thread that made it.
        server = Server(options.protocol, address, patience=300)
        server.call(options.signature, **inputs)
        everybody.wait()
        began, seconds = time.perf_counter(), []
        for _ in range(number, options.calls, options.clients):
            started = time.perf_counter()
            server.call(options.signature, **inputs)
            seconds.append(time.perf_counter() - started)
        return began, time.perf_counter(), seconds

    with ThreadPoolExecutor(options.clients) as pool:
        began, ended, parts = zip(*pool.map(serve_client, range(options.clients)))
    seconds = [each for part in parts for each in part]
    total = max(ended) - min(began)
    print(json.dumps({"seconds": seconds, "total": total}))


if __name__ == "__main__":
    main()
