"""Runs a PPO script of CleanRL some updates at a time; a helper of benchmarks/atari.py.

    python benchmarks/cleanrl_turns.py CLEANRL/cleanrl/ppo_atari_envpool.py ENVIRONMENT_ID

It reads a number of updates from standard input, lets the script make them, and writes the seconds
and the seconds of CPU time that they took; again and again until the input ends. One epoch and one
mini-batch an unroll make CleanRL's PPO an A2C (Huang et al. 2022, "A2C is a special case of PPO").
Its network is replaced by that of Mnih et al. 2013, as in leap_tf. The script itself is unchanged.

It needs an own environment of Python 3.11: torch, gym 0.23.1, gymnasium 0.29.1, envpool 0.8.4,
ale-py, numpy < 2, opencv-python-headless < 5, tensorboard, tyro.
"""

import os
import pathlib
import sys
import tempfile
import time

COPIES, UNROLL = 32, 5
NETWORK = {  # CleanRL's lines: ours
    "Conv2d(4, 32, 8, stride=4)": "Conv2d(4, 16, 8, stride=4)",
    "Conv2d(32, 64, 4, stride=2)": "Conv2d(16, 32, 4, stride=2)",
    "            layer_init(nn.Conv2d(64, 64, 3, stride=1)),\n            nn.ReLU(),\n": "",
    "Linear(64 * 7 * 7, 512)": "Linear(32 * 9 * 9, 256)",
    "Linear(512, envs": "Linear(256, envs",
    "Linear(512, 1)": "Linear(256, 1)",
}


class Turns:
    """Stops the script after each turn, at the line that it prints after an update."""

    def __init__(self):
        self._left = 0
        self._started = None

    def print(self, *printed):
        if printed[0] != "SPS:":
            return
        self._left -= 1
        if self._left > 0:
            return
        if self._started:
            seconds = time.perf_counter() - self._started[0]
            answer = f"{seconds} {time.process_time() - self._started[1]}\n"
            os.write(sys.stdout.fileno(), answer.encode())
        request = sys.stdin.readline()
        if not request:
            raise SystemExit
        self._left = int(request)
        self._started = time.perf_counter(), time.process_time()


def main():
    script, environment = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    source = script.read_text()
    for theirs, ours in NETWORK.items():
        if theirs not in source:
            raise SystemExit(f"{script} has no {theirs!r}. Use the revision of docs/atari.md.")
        source = source.replace(theirs, ours)
    if "gymnasium" in source:
        import ale_py.registration

        ale_py.registration.register_v0_v4_envs()  # gymnasium 0.29 does not find them itself
    sys.path.insert(0, str(script.parents[1]))
    sys.argv = [
        script.name, "--env-id", environment, "--num-envs", str(COPIES), "--num-steps", str(UNROLL),
        "--update-epochs", "1", "--num-minibatches", "1", "--total-timesteps", str(10**9),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the script writes its logs here
        exec(
            compile(source, str(script), "exec"),
            {"__name__": "__main__", "__file__": str(script), "print": Turns().print},
        )


if __name__ == "__main__":
    main()
