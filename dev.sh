#!/usr/bin/env bash
# Makes the environment in .venv and runs a job in it:
#   bash dev.sh install | train [CONFIG [RUN]] | test [fast | PYTEST ARGS] | clients | tools
# `clients`, and `test` but for `fast`, make .venv-clients: the clients that docs/clients.md is about.
# `tools` installs what some tests need of the system (Chromium, PostgreSQL), by apt-get as root.
# REQUIREMENTS=requirements/cuda.txt chooses the CUDA set; PYTHON names the interpreter (3.11).
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null 2>&1 || python=python3
requirements=${REQUIREMENTS:-requirements/cpu.txt}
environment=${VIRTUAL_ENV_DIR:-.venv}
export CLIENTS_DIR=${CLIENTS_DIR:-.venv-clients}

install() {
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
        { echo "raylla needs Python 3.11; set PYTHON to one" >&2; exit 2; }
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    local stamp="$environment/.installed" wanted
    wanted=$(cat "$requirements" pyproject.toml | sha256sum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    echo "installing $requirements into $environment (a few minutes the first time)" >&2
    local pip=("$environment/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps)
    # The list is complete and exact, so that pip resolves nothing and pulls in no CUDA vision package.
    local torch
    torch=$(grep '^torch==' "$requirements")
    "${pip[@]}" "$torch" 2>/dev/null ||
        "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
    "${pip[@]}" setuptools wheel packaging ninja 2>/dev/null
    grep -v '^torch==' "$requirements" > "$environment/rest.txt"
    "${pip[@]}" --no-build-isolation -r "$environment/rest.txt" 2> "$environment/install.log" ||
        { grep -v WARNING "$environment/install.log" >&2; exit 1; }
    "${pip[@]}" --no-build-isolation --editable . 2>> "$environment/install.log"
    echo "$wanted" > "$stamp"
}

# The clients that the endpoint is tried with, whose pins are nobody else's.
clients() {
    local list=requirements/clients.txt stamp="$CLIENTS_DIR/.installed" wanted
    [ "$CLIENTS_DIR" != none ] || return 0
    wanted=$(sha256sum < "$list")
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    echo "installing $list into $CLIENTS_DIR" >&2
    rm -rf "$CLIENTS_DIR"
    "$python" -m venv "$CLIENTS_DIR"
    "$CLIENTS_DIR/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps -r "$list" \
        2> "$CLIENTS_DIR/install.log" || {
        grep -v WARNING "$CLIENTS_DIR/install.log" >&2 || true
        echo "the clients of $list were not installed; CLIENTS_DIR=none tests without them" >&2
        exit 1
    }
    echo "$wanted" > "$stamp"
}

tools() {
    local wanted=()
    [ -x /usr/bin/chromium ] || wanted+=(chromium fonts-dejavu-core)
    command -v initdb >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || wanted+=(postgresql)
    [ ${#wanted[@]} -gt 0 ] || return 0
    echo "installing ${wanted[*]}" >&2
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null ||
        { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null; }
}

# Two halves: what Ray, vLLM and DeepSpeed leave in one never meets the unit tests, which take a process a core.
# Arguments that name a path are for one process; with others (-k, -m) one of the two may have no such test.
tests() {
    local pytest=("$environment/bin/python" -m pytest) argument half code none=5 status=0
    local aside="-n auto --maxprocesses 4 --dist loadfile"
    if [ "${1:-}" = fast ]; then
        exec "${pytest[@]}" --fast tests/unit "${@:2}"
    fi
    for argument in "$@"; do
        if [ -e "${argument%%::*}" ]; then
            exec "${pytest[@]}" "$@"
        fi
    done
    for half in "$aside tests --ignore=tests/actors --ignore=tests/chaos --ignore=tests/e2e" \
        "tests/actors tests/chaos tests/e2e"; do
        code=0
        # shellcheck disable=SC2086
        "${pytest[@]}" $half "$@" || code=$?
        case $code in
            0) none=0 ;;
            5) ;; # pytest found no test
            *) status=$code ;;
        esac
    done
    [ "$status" -ne 0 ] || status=$none
    exit "$status"
}

case ${1:-} in
    install)
        install
        ;;
    clients)
        clients
        ;;
    tools)
        tools
        ;;
    train)
        install
        exec "$environment/bin/raylla" train "${2:-configs/pocket.yaml}" --run "${3:-runs/pocket}"
        ;;
    test)
        install
        shift
        [ "${1:-}" = fast ] || clients
        "$environment/bin/ruff" check .
        "$environment/bin/ruff" format --check .
        "$environment/bin/mypy"
        tests "$@"
        ;;
    *)
        sed -n '2,6p' "$0" >&2
        exit 2
        ;;
esac
