#!/usr/bin/env bash
# install-and-run.sh CLIENT [install]: makes the client's virtual environment at its installation and runs its program afterwards.
set -euo pipefail
cd "$(dirname "$0")/$1"
if [ "${2:-}" = install ]; then
  cmp -s requirements.txt "$CACHE/installed" && exit 0
  rm -rf "$CACHE/venv" "$CACHE/installed"
  python3 -m venv "$CACHE/venv" || { echo "python3 makes no virtual environment (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 77; }
  "$CACHE/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$CACHE/installed"
  exit 0
fi
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.. exec "$CACHE/venv/bin/python" main.py
