# Sourced by the scripts beside it: an environment of pinned packages in a temporary folder, removed at the end.
set -eu
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore OMP_NUM_THREADS=1
prepare() {
  "${PYTHON:-python3}" -m venv "$home/venv"
  "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
see() { "$home/venv/bin/python" - 2>"$home/err" || { cat "$home/err" >&2; exit 1; }; }
