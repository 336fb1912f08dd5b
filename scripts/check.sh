#!/usr/bin/env bash
# Every check: format, lint, types, the base install, tests, two minutes of fuzzing. Installs what it needs into .venv-check.
#   scripts/check.sh               everything
#   scripts/check.sh --coverage    everything; also measures which lines of the package the tests run
#   scripts/check.sh tests/model   everything but fuzzing, and only these tests
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${EVITSEG_VENV:-.venv-check}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# While the installation and mypy mostly keep one core busy. Both build the core; who comes second takes what is there.
export EVITSEG_REUSE_CORE=1
base=$(mktemp)
PYTHON="$venv/bin/python" bash scripts/base_install.sh >"$base" 2>&1 &
base_install=$!
trap 'kill "$base_install" 2>/dev/null || true; rm -f "$base"' EXIT

echo "installing into $venv"
# Python compiles what is imported; pip would compile 30,000 files, which takes a minute.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"

"$venv/bin/ruff" format --check --quiet src tests benchmarks scripts core hatch_build.py
"$venv/bin/ruff" check --quiet src tests benchmarks scripts core hatch_build.py
"$venv/bin/mypy" --num-workers 2
"$venv/bin/python" benchmarks/tables.py --check
wait "$base_install" || { cat "$base"; exit 1; }
cat "$base"
trap 'rm -f "$base"' EXIT
# Two processes; a file's tests stay in one, because they share its fixtures. tests/conftest.py decides their order.
pytest=("$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder)
if [ "${1:-}" = --coverage ]; then
    "${pytest[@]}" --cov --cov-report=term-missing:skip-covered
    "$venv/bin/python" scripts/fuzz.py --seconds 120
elif [ $# -gt 0 ]; then
    "$venv/bin/python" -m pytest "$@"
else
    "${pytest[@]}"
    "$venv/bin/python" scripts/fuzz.py --seconds 120
fi
