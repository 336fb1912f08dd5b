#!/usr/bin/env bash
# Every check: format, lint, types, the base install, tests, two minutes of fuzzing. Installs what it needs into .venv-check.
#   scripts/check.sh               everything
#   scripts/check.sh tests/model   everything, but of the tests only these
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${EVITSEG_VENV:-.venv-check}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "installing into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"

"$venv/bin/ruff" format --check --quiet src tests benchmarks scripts core hatch_build.py
"$venv/bin/ruff" check --quiet src tests benchmarks scripts core hatch_build.py
"$venv/bin/mypy"
"$venv/bin/python" benchmarks/tables.py --check
PYTHON="$venv/bin/python" bash scripts/base_install.sh
if [ $# -gt 0 ]; then
    "$venv/bin/python" -m pytest "$@"
else
    "$venv/bin/python" scripts/fuzz.py --seconds 120
    "$venv/bin/python" -m pytest
fi
