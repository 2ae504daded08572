#!/usr/bin/env bash
# The sdist makes a wheel, and the wheel works without the checkout: its programs train, stop, resume,
# evaluate, export, sweep and report, on a shipped configuration and on the study of examples/own_study.
#
#     tests/install/wheel.sh [python of an environment with requirements.txt; .venv/bin/python]
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${1:-.venv/bin/python}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q build
"$work/build/bin/python" -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 ||
  { tail -n 20 "$work/build.log" >&2; exit 1; }
"$python" -m pip install -q --no-deps --target "$work/site" "$work"/dist/*.whl

# Whatever git has in leap_tf that is not Python: it must be in the wheel as well.
git ls-files leap_tf gin_configs | grep -v '\.py$' | while read -r file; do
  cmp "$file" "$work/site/${file/#gin_configs/leap_tf/gin_configs}"
done

# The thin files and the example alone, so that nothing comes from the checkout.
cp -r bin examples/own_study docs/results/omniglot "$work"
cd "$work/own_study"
export PYTHONPATH="$work/site" PATH="$work/site/bin:$PATH" RAY_AUTH_MODE=disabled
unset TF_CPP_MIN_LOG_LEVEL
"$python" -c "import leap_tf; assert leap_tf.__file__.startswith('$work'), leap_tf.__file__"
run() { "$@" > log 2>&1 || { tail -n 20 log >&2; exit 1; }; }
fails() {  # fails MESSAGE COMMAND…: the command fails, and its last line has the message
  if "${@:2}" > log 2>&1 || ! tail -n 1 log | grep -q -e "$1"; then
    tail -n 20 log >&2
    exit 1
  fi
}

# A shipped configuration, by its name.
run "$python" ../bin/train.py --gin_file=sinusoid.gin --output_dir=sinusoid \
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
! grep -e 'I0000' -e 'E0000' -e InitializeLog log

fails 'give --module=.*forecasting.py again' leap-evaluate --output_dir=run
run leap-evaluate --module=forecasting.py --output_dir=run --gin_param='evaluate.steps = 2'
run leap-export --module=forecasting.py --output_dir=run
run leap-sweep --module=forecasting.py --gin_file=sweep.gin --output_dir=sweep \
  --gin_param='sweep.bindings = ["meta_train.meta_steps = 1"]'
run leap-report --runs=sweep --output_dir=page
ls run/evaluation_again.json run/export/MODEL_CARD.md sweep/cells/{4,8}/evaluation.json page/report.md > /dev/null

if "$python" -c "import ray" 2> /dev/null; then  # the same bits as the threads above
  run leap-train "${own[@]}" --output_dir=ray --pool=ray --workers=2
  cmp run/evaluation.json ray/evaluation.json
else
  echo "Ray is not installed, and the own study is not tried on it."
fi
echo "The wheel works: $(basename ../dist/*.whl)"
