#!/usr/bin/env bash
# One JSON of what alignment takes on this machine's GPU: bash tests/gpu/run.sh [FILE] [OPTIONS of tests.gpu]
# Within 8 minutes, installation included. PYTHON names the interpreter; the wheels that `carry.sh` fetched (WHEELS)
# are installed aside, without a network. `--small` tries all of it on the CPU in miniature.
set -euo pipefail
began=$(date +%s)
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "PYTHON=$python is no interpreter; set it to one that has torch" >&2; exit 2; }
wheels=${WHEELS:-.wheels}
if compgen -G "$wheels/*.whl" >/dev/null; then
    aside=$(mktemp -d)
    trap 'rm -rf "$aside"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$aside" "$wheels"/*.whl
    export PYTHONPATH="$aside:${PYTHONPATH:-}"
fi
case "${1:-}" in
    "" | -*) file=gpu.json ;;
    *) file=$1; shift ;;
esac
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m tests.gpu "$file" --spent "$(($(date +%s) - began))" "$@"
