#!/usr/bin/env bash
# The wheel in an empty environment: that it runs without torch, and how large wheel and environment are.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
limit_wheel_mb=6
limit_install_mb=130

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work" .
"$python" -m venv "$work/venv"
empty=$(du -sk "$work/venv" | cut -f1)
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$work"/evitseg-*.whl

cd "$work"
venv/bin/evitseg predict --example --out out >/dev/null
test -s out/street_mask.png
test -s out/street_overlay.jpg
if venv/bin/python -c 'import torch' 2>/dev/null; then echo "the base install has torch" >&2; exit 1; fi

wheel_kb=$(du -k evitseg-*.whl | cut -f1)
install_mb=$((($(du -sk venv | cut -f1) - empty) / 1024))
help_s=$(venv/bin/python - <<'PY'
import statistics, subprocess, time
def once():
    start = time.perf_counter()
    subprocess.run(["venv/bin/evitseg", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
print(f"{statistics.median(once() for _ in range(7)):.2f}")
PY
)
echo "base install: wheel $wheel_kb KB, $install_mb MB on disk without torch, evitseg --help in $help_s s"
test "$wheel_kb" -le $((limit_wheel_mb * 1024))
test "$install_mb" -le "$limit_install_mb"
