#!/usr/bin/env bash
# Makes the environment of server.py and client.py, in .venv beside this file. If that is not
# possible, environment_failed.log says why, and the test that would start the server quotes it.
set -uo pipefail
cd "$(dirname "$0")"
rm -f environment_failed.log
if ! { python3 -m venv .venv && .venv/bin/pip install -q --no-deps -r requirements.txt; } 2> environment_failed.log; then
  tail -n 3 environment_failed.log >&2
  exit 1
fi
rm -f environment_failed.log
