#!/usr/bin/env bash
# Format, lint, tests, wheel: what CI and the pre-commit hook run.
#   tools/check.sh            all of it
#   tools/check.sh --full     with the slow tests, and tests must reach 95 % of
#                             all lines
#   tools/check.sh --quick    format, lint and import layers only
#   tools/check.sh --no-tests all but the tests (CI has run them already)
set -euo pipefail
cd "$(dirname "$0")/.."

ruff format --check .
ruff check .
lint-imports
[ "${1:-}" = "--quick" ] && exit 0

if [ "${1:-}" != "--no-tests" ]; then
  measured=()
  # Several times as long: not for every change.
  [ "${1:-}" = "--full" ] &&
    measured=(-m "slow or not slow" --cov --cov-report=term --cov-fail-under=95)
  python -m pytest -n auto "${measured[@]}"
fi

# The wheel must hold every module and every recipe of the checkout.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels" build' EXIT
rm -rf build  # a module deleted since would still be in it
python -m build --wheel --no-isolation --outdir "$wheels" . >"$wheels/log" 2>&1 \
  || { cat "$wheels/log"; exit 1; }
python tools/check_wheel.py "$wheels"/*.whl
