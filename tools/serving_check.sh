#!/usr/bin/env bash
# Loads an export in C++, saved_model_cli and TensorFlow Serving's messages.
#   tools/serving_check.sh EXPORT [--threads=8 --seconds=60] [--images=FOLDER]
# EXPORT: a version, or a folder of versions (its latest). With --threads and
# --seconds the C++ program goes on for that time and watches its memory.
# Needs g++, tensorflow-serving-api, and the package in the active environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export TMPDIR=$folder  # what the checks leave behind goes as well
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

# The headers and libraries that TensorFlow's wheel brings.
python - >"$folder/flags" <<'PY'
import tensorflow as tf
print(*tf.sysconfig.get_compile_flags())
print(*tf.sysconfig.get_link_flags())
print(tf.sysconfig.get_lib())
PY
{
  read -ra compile
  read -ra link
  read -r library
} <"$folder/flags"
# The wheel's headers warn about themselves: as the system's they are silent.
# Kernels register themselves when their library is loaded: --no-as-needed
# keeps it.
g++ -O1 -std=c++17 "${compile[@]/#-I/-isystem}" \
  "$here/serving_check/serving_check.cc" -o "$folder/serving_check" \
  -Wl,--no-as-needed "${link[@]}" -l:libtensorflow_cc.so.2 \
  -l:libtensorflow_framework.so.2 -Wl,-rpath,"$library"

python "$here/serving_check/check.py" --program="$folder/serving_check" "$@"
