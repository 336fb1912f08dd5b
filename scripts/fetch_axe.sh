#!/bin/sh
# Fetches axe-core, which tests/web/test_accessibility.py checks the page with, from npm into a folder:
#   scripts/fetch_axe.sh /tmp/axe && EVITSEG_AXE=/tmp/axe/axe.min.js python -m pytest tests/web/test_accessibility.py
set -eu
folder=${1:?give a folder}
mkdir -p "$folder"
cd "$folder"
tar -xzf "$(npm pack --silent axe-core@4.14.1)" --strip-components=1 package/axe.min.js
rm -f axe-core-*.tgz
