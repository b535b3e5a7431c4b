#!/usr/bin/env bash
# `bazel test //...` without a network, with Debian's bazel-bootstrap (Bazel 4).
#
# That Bazel cannot fetch rules, so the tree is copied to a folder of its own
# with a WORKSPACE of stubs (tools/bazel/) and the Python of this environment as
# the toolchain. A current Bazel reads MODULE.bazel instead and needs no script.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v bazel >/dev/null || {
  echo "bazel is missing: apt-get install bazel-bootstrap" >&2
  exit 1
}
work=$(mktemp -d)
trap '(cd "$work/tree" && bazel --output_user_root="$work/out" shutdown) \
  >/dev/null 2>&1; chmod -R u+w "$work"; rm -rf "$work"' EXIT

mkdir "$work/tree"
cp -r BUILD MODULE.bazel README.md pyproject.toml simmatch_tf configs tests \
  "$work/tree"
mkdir -p "$work/tree/tools"
cp -r tools/bazel "$work/tree/tools"
cp tools/bazel/WORKSPACE "$work/tree"
echo tools/bazel/stubs >"$work/tree/.bazelignore"
mkdir "$work/tree/toolchain"
python=$(command -v python3 || command -v python)
sed "s|@PYTHON@|$python|" tools/bazel/toolchain.BUILD \
  >"$work/tree/toolchain/BUILD"

cd "$work/tree"
bazel --output_user_root="$work/out" test //... \
  --test_output=errors --jobs=2 --local_test_jobs=1 \
  --test_env=KERAS_BACKEND=tensorflow --test_env=TF_CPP_MIN_LOG_LEVEL=2 "$@"
