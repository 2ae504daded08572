#!/usr/bin/env bash
# Proves the BUILD file with Debian's bazel-bootstrap, offline: everything in it loads and builds,
# every target lists exactly what its files import, some tests and a binary run in Bazel's sandbox,
# which holds only what they declare. Then things are taken out of the file, and each must be missed.
#
#     tests/bazel/check.sh [python of an environment with requirements-all.txt; .venv/bin/python]
#
# MODULE.bazel is not used: a Bazel that reads it must download rules_python and the packages, and
# WORKSPACE.stand_ins puts built-in rules and that environment's packages in their place.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${1:-.venv/bin/python}")"

unavailable() {  # in CI, the check is not optional
  echo "tests/bazel/check.sh: $1" >&2
  [ -n "${CI:-}" ] && exit 1
  echo "The BUILD file is not checked." >&2
  exit 0
}
if ! [ -x /usr/bin/bazel-4 ]; then
  { apt-get update -q && apt-get install -q -y --no-install-recommends bazel-bootstrap; } > /dev/null ||
    unavailable "Debian's bazel-bootstrap is not installed and cannot be (apt-get install bazel-bootstrap)"
fi

# Without markers: a package may be one of all systems for one extra, and of Windows for another.
versions() { sed 's/ *;.*//' "$@" | sort -u; }
versions $(ls requirements*.txt | grep -v -e -all -e -torch) | diff - <(versions requirements-all.txt) ||
  { echo "requirements-all.txt is not all of the others: compile it again (CONTRIBUTING.md)" >&2; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

npm install --silent --no-save --prefix "$work/npm" @bazel/buildifier@8.2.1 > /dev/null ||
  unavailable "buildifier cannot be installed (npm install @bazel/buildifier)"
"$work/npm/node_modules/.bin/buildifier" -mode=check -lint=warn BUILD MODULE.bazel tests/bazel/stand_ins.bzl

# The workspace: links to the checkout, with the stand-ins in the place of MODULE.bazel.
mkdir "$work/workspace"
ln -s "$PWD"/* "$work/workspace"
checkout="$PWD"
cd "$work/workspace"
rm BUILD MODULE.bazel
cp "$checkout/BUILD" .
cp tests/bazel/stand_ins.bzl tests/bazel/pypi.py .
cp tests/bazel/WORKSPACE.stand_ins WORKSPACE
# Python without site-packages, so that packages come from `deps` only.
printf '#!/bin/sh\nexec "%s" -S "$@"\n' "$("$python" -c 'import sys; print(sys._base_executable)')" > python
chmod +x python
cat > .bazelrc << END
common --noshow_progress
query --output=xml
build --incompatible_use_python_toolchains=false --python_path=$PWD/python --symlink_prefix=/
test --test_output=errors --test_env=PATH --local_test_jobs=2
END
export STAND_IN_PYTHON="$python" PYTHONDONTWRITEBYTECODE=1
bazel() { /usr/bin/bazel --output_user_root="$work/bazel" "$@" 2> >(grep -E 'ERROR|FAILED|error' >&2); }
trap 'bazel shutdown || true; chmod -R u+w "$work"; rm -rf "$work"' EXIT
imports() { bazel query //:all | "$python" tests/bazel/imports.py; }

imports
bazel build //:all
bazel test //:geometry_test //:functional_test
bazel run //:train -- --gin_file="$PWD/gin_configs/sinusoid.gin" --output_dir="$work/run" \
  --gin_param='meta_train.meta_steps = 2' --gin_param='sinusoid_splits.test_tasks = 2' > "$work/train.log" 2>&1 ||
  { tail -n 20 "$work/train.log" >&2; exit 1; }
test -s "$work/run/evaluation.json"

# taken_out TARGET LINE EXPECTED COMMAND…: without LINE in TARGET, COMMAND fails and says EXPECTED.
taken_out() {
  local target="$1" line="$2" expected="$3"
  shift 3
  sed "/name = \"$target\"/,/^)/{/$line/d}" "$checkout/BUILD" > BUILD
  if cmp -s BUILD "$checkout/BUILD"; then
    echo "There is no $line in $target to take out." >&2
    exit 1
  fi
  if "$@" > "$work/log" 2>&1 || ! grep -q "$expected" "$work/log"; then
    tail -n 20 "$work/log" >&2
    echo "BUILD without $line in $target should have failed with: $expected" >&2
    exit 1
  fi
  cp "$checkout/BUILD" .
  echo "Taking $line out of $target is noticed: $expected"
}
taken_out experiments '":datasets"' 'add //:datasets to deps' imports
taken_out leap_tf '@pypi\/\/tqdm' 'add @pypi//tqdm to deps' imports
taken_out testing '@pypi\/\/hypothesis' "No module named 'hypothesis" bazel test //:functional_test
taken_out testing 'data = ' 'golden_public' bazel test //:geometry_test
