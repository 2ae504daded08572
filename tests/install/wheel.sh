#!/usr/bin/env bash
# The sdist makes a wheel, and the wheel works without the checkout: the binaries train, judge,
# export and report from it, with all templates and checksums.
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
git ls-files leap_tf | grep -v '\.py$' | while read -r file; do
  cmp "$file" "$work/site/$file"
done

# The binaries alone, so that nothing comes from the checkout.
cp -r bin gin_configs docs/results/omniglot "$work"
cd "$work"
export PYTHONPATH="$work/site" TF_CPP_MIN_LOG_LEVEL=2
"$python" -c "import leap_tf; assert leap_tf.__file__.startswith('$work'), leap_tf.__file__"
run() { "$python" "bin/$1.py" "${@:2}" > "$1.log" 2>&1 || { tail -n 20 "$1.log" >&2; exit 1; }; }
run train --gin_file=gin_configs/sinusoid.gin --output_dir=run \
  --gin_param='meta_train.meta_steps = 2' --gin_param='sinusoid_splits.test_tasks = 2'
run evaluate --output_dir=run
run export --output_dir=run
run report --runs=run --output_dir=page
run report --results=omniglot --output_dir=omniglot_page
ls run/evaluation.json run/export/MODEL_CARD.md page/report.md omniglot_page/report.md > /dev/null
echo "The wheel works: $(basename dist/*.whl)"
