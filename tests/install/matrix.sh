#!/usr/bin/env bash
# Installs leap_tf as the README says, in clean environments with an empty home directory, for every
# Python and extra, and prints a table of what works.
#
#     tests/install/matrix.sh python3.11 python3.12 python3.13
#
# An environment has 2.5 GB and takes minutes to fill; each is deleted when it has been tried. pip's
# settings apply: PIP_CACHE_DIR or PIP_FIND_LINKS save downloads. What failed is at the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export HOME="$work/home" TF_CPP_MIN_LOG_LEVEL=2
failures="$work/failures"
: > "$failures"

# try LABEL COMMAND…: prints yes, or no and keeps the last lines of what COMMAND said.
try() {
  if "${@:2}" > "$work/log" 2>&1; then
    printf ' yes |'
  else
    printf ' **no** |'
    { echo "--- $cell: $1"; tail -n 5 "$work/log"; } >> "$failures"
  fi
}

pip() { "$work/venv/bin/pip" "$@"; }
# From elsewhere, so that what is imported is what was installed.
import() { env -C / "$work/venv/bin/python" -c "import $1"; }
import_base() { import leap_tf; }
import_cluster() { import 'leap_tf.cluster, ray'; }
import_atari() { TF_USE_LEGACY_KERAS=1 import leap_tf.atari; }

# Politely: the table does not say how fast anything is.
train() { nice "$work/venv/bin/python" "bin/$1.py" --output_dir="$work/run" "${@:2}"; }
tests() { nice "$work/venv/bin/python" -m pytest -p no:cacheprovider "$@"; }

train_readme() {  # the README's first command, cut short
  train train --gin_file=gin_configs/unicode_cpu.gin --gin_param='meta_train.meta_steps = 2' \
    --gin_param='meta_train.validation_freq = 2' --gin_param='MetaTrainer.steps_per_task = 3' \
    --gin_param='alphabet_splits.test_alphabets = 2'
}

train_sinusoid() {
  train train --gin_file=gin_configs/sinusoid.gin --gin_param='meta_train.meta_steps = 2' \
    --gin_param='sinusoid_splits.test_tasks = 2' "$@"
}

train_cluster() { train_sinusoid --pool=ray --workers=1; }

train_atari() {
  train atari_train --gin_file=gin_configs/atari_cpu.gin --gin_param='atari_meta_train.meta_steps = 1' \
    --gin_param='AtariProblem.steps_per_task = 4' --gin_param='AtariEnvironment.copies = 2'
}

test_base() { tests tests/test_geometry.py tests/test_models.py tests/test_readme.py; }
test_cluster() { tests tests/cluster/test_worker.py tests/cluster/test_scheduler.py; }
test_atari() { TF_USE_LEGACY_KERAS=1 tests tests/atari/test_agent.py tests/atari/test_trainer.py; }

# row PYTHON EXTRA FROM IMPORT TRAIN TESTS INSTALL…
row() {
  local python="$1" extra="$2" from="$3" import="$4" train="$5" tests="$6"
  cell="$("$python" -V 2>&1 | cut -d' ' -f2), $extra, $from"
  rm -rf "$work/venv" "$work/home" "$work/run"
  mkdir "$work/home"
  "$python" -m venv "$work/venv"
  printf '| %s |' "${cell//, / | }"
  try install pip install -q "${@:7}"
  try 'pip check' pip check
  try import "$import"
  try train "$train"
  if [ "$tests" = - ]; then
    echo ' – |'
  else
    try tests "$tests"
    echo
  fi
}

echo '| Python | extra | from | installs | `pip check` | imports | trains | tests |'
echo '|---|---|---|---|---|---|---|---|'
for python in "$@"; do
  row "$python" none requirements.txt import_base train_readme - --no-deps -r requirements.txt -e .
  row "$python" none pyproject.toml import_base train_sinusoid - .
  row "$python" dev requirements-dev.txt import_base train_sinusoid test_base \
    --no-deps -r requirements-dev.txt -e .
  row "$python" dev,cluster "requirements-dev.txt + -cluster.txt" import_cluster train_cluster \
    test_cluster --no-deps -r requirements-dev.txt -r requirements-cluster.txt -e .
  row "$python" cluster pyproject.toml import_cluster train_cluster - '.[cluster]'
  row "$python" dev,atari "requirements-dev.txt + -atari.txt" import_atari train_atari \
    test_atari --no-deps -r requirements-dev.txt -r requirements-atari.txt -e .
  row "$python" atari pyproject.toml import_atari train_atari - '.[atari]'
done
echo
cat "$failures"
