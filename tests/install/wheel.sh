#!/usr/bin/env bash
# The sdist makes a wheel, and the wheel works in an environment of its own, which has its dependencies and
# nothing else: its programs train, stop, resume, evaluate, export, sweep and report, on a shipped
# configuration and on the study of examples/own_study, and that one gives the same bits on Ray.
#
#     tests/install/wheel.sh [python; python3 by default]
set -euo pipefail
cd "$(dirname "$0")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PIP_COMPILE=0  # modules are compiled when they are first imported
unset PYTHONPATH PYTHONDONTWRITEBYTECODE TF_CPP_MIN_LOG_LEVEL

"${1:-python3}" -m venv "$work/build"
"$work/build/bin/pip" install -q build
"$work/build/bin/python" -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 ||
  { tail -n 20 "$work/build.log" >&2; exit 1; }
wheel="$(echo "$work"/dist/*.whl)"

# The dependencies are those that the wheel names, in the versions that the checkout pins.
"${1:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install -q -c requirements.txt -c requirements-cluster.txt "${wheel}[experiments,cluster]"
site="$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# Whatever git has in leap_tf that is not Python: it must be in the wheel as well.
git ls-files leap_tf gin_configs | grep -v '\.py$' | while read -r file; do
  cmp "$file" "$site/${file/#gin_configs/leap_tf/gin_configs}"
done

# The thin files and the example alone, so that nothing comes from the checkout.
cp -r bin examples/own_study docs/results/omniglot "$work"
cd "$work/own_study"
export PATH="$work/env/bin:$PATH" RAY_AUTH_MODE=disabled
run() { "$@" > log 2>&1 || { tail -n 20 log >&2; exit 1; }; }
fails() {  # fails MESSAGE COMMAND…: the command fails, and its last line has the message
  if "${@:2}" > log 2>&1 || ! tail -n 1 log | grep -q -e "$1"; then
    tail -n 20 log >&2
    exit 1
  fi
}

# A shipped configuration, by its name.
run python ../bin/train.py --gin_file=sinusoid.gin --output_dir=sinusoid \
  --gin_param='meta_train.meta_steps = 2' --gin_param='sinusoid_splits.test_tasks = 2'
fails 'Shipped are unicode_cpu.gin' leap-train --gin_file=unicode.gin --output_dir=no_run
run leap-report --results=../omniglot --output_dir=omniglot_page

# An own study. It is stopped by SIGTERM and continued.
own=(--module=forecasting.py --gin_file=forecasting.gin --gin_param='meta_train.meta_steps = 12'
  --gin_param='MetaTrainer.steps_per_task = 10')
leap-train "${own[@]}" --output_dir=run > log 2>&1 &
process=$!
until [ "$(cat run/metrics.jsonl 2> /dev/null | wc -l)" -ge 2 ]; do
  kill -0 "$process" || { cat log >&2; exit 1; }
  sleep 0.05
done
kill -TERM "$process"
code=0
wait "$process" || code=$?
[ "$code" = 143 ] && [ ! -e run/evaluation.json ] || { cat log >&2; exit 1; }
run leap-train "${own[@]}" --output_dir=run
if grep -e I0000 -e E0000 -e InitializeLog log; then exit 1; fi  # of TensorFlow

fails 'Pass --module=.*forecasting.py again' leap-evaluate --output_dir=run
run leap-evaluate --module=forecasting.py --output_dir=run --gin_param='evaluate.steps = 2'
run leap-export --module=forecasting.py --output_dir=run
run python adapt.py run/initialization.keras
run leap-sweep --module=forecasting.py --gin_file=sweep.gin --output_dir=sweep \
  --gin_param='sweep.bindings = ["meta_train.meta_steps = 1"]'
run leap-report --runs=sweep --output_dir=page
ls run/evaluation_again.json run/export/MODEL_CARD.md sweep/cells/{4,8}/evaluation.json page/report.md > /dev/null

# The same bits on Ray as on the threads above.
run leap-train "${own[@]}" --output_dir=ray --pool=ray --workers=2
cmp run/evaluation.json ray/evaluation.json
echo "The wheel works: $(basename "$wheel")"
