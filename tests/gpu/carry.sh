#!/usr/bin/env bash
# Fetches into .wheels what `run.sh` needs on a machine that has Python 3.12, torch and numpy and no network:
#   bash tests/gpu/carry.sh
# The versions are those of requirements/cpu.txt. TRL is not among them: it needs `datasets`, whose pyarrow and
# pandas alone outgrow what may be carried.
set -euo pipefail
cd "$(dirname "$0")/../.."
names="accelerate annotated-doc annotated-types anyio certifi click filelock fsspec h11 httpcore2 httpx2
huggingface_hub idna packaging peft psutil pydantic pydantic_core pyyaml regex rich safetensors shellingham sniffio tokenizers
tqdm transformers truststore typer typing-inspection typing_extensions markdown-it-py mdurl pygments"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "PYTHON=$python is no interpreter; set it to one that has pip" >&2; exit 2; }
pins=()
for name in $names; do
    pin=$(grep -i "^${name//[-_]/[-_]}==" requirements/cpu.txt) ||
        { echo "$name is not in requirements/cpu.txt" >&2; exit 2; }
    pins+=("$pin")
done
rm -rf .wheels
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    --platform manylinux1_x86_64 --dest .wheels "${pins[@]}"
du -sh .wheels
