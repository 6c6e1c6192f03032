#!/bin/bash
# Run the prepared checks and measurements on a GPU: bash benchmarks/gpu/order.sh [STAGE …] [--minutes 4]
# README.md beside this file lists the wheels to bring and the stages. Results go to the folder in OUT, which is ./out
# if OUT is not set.
set -u
cd "$(dirname "$0")/../.." || exit 1
export OUT=${OUT:-$PWD/out} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHON=${PYTHON:-python3}
export FINETALE_CACHE=${FINETALE_CACHE:-/tmp/finetale-cache}
mkdir -p "$OUT"
site=${SITE:-/tmp/finetale-site}
if compgen -G "wheels/*.whl" >/dev/null && [ ! -e "$site/.complete" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" wheels/*.whl ||
        exit 1
    touch "$site/.complete"
fi
export PYTHONPATH=$site:$PWD/src
exec "$PYTHON" benchmarks/gpu/order.py "$@"
