#!/usr/bin/env bash
# One command on a machine with an NVIDIA GPU; results go to runs/gpu (docs/guides/gpu.md):
#
#     bash bench/gpu.sh                          # options: bash bench/gpu.sh --help
#
# On a machine without a network, first bring what `bash bench/gpu_wheels.sh` has put into .gpu/1, .gpu/2 and .gpu/3: with
# each of these folders in the checkout, one after the other, run
#
#     bash bench/gpu.sh --receive                # keeps the folder's files outside of the checkout
#
# and then the command above: it installs the wheels, joins the parts of the model and checks its sum.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
STORE=${STORE:-${TMPDIR:-/tmp}/srlib-gpu}
if compgen -G ".gpu/[0-9]/*" >/dev/null; then
    mkdir -p "$STORE"
    cp -f .gpu/[0-9]/* "$STORE/"
fi
[ "${1:-}" = --receive ] && { ls -l "$STORE"; exit 0; }

if compgen -G "$STORE/*.whl" >/dev/null && [ ! -d "$STORE/site" ]; then
    rm -rf "$STORE/site.new"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$STORE/site.new" "$STORE"/*.whl
    "$PYTHON" -m compileall -q -j 0 "$STORE/site.new" >/dev/null || true # else each process of the first minute compiles them
    mv "$STORE/site.new" "$STORE/site"
fi
if [ -d "$STORE/site" ]; then
    export PYTHONPATH="$STORE/site${PYTHONPATH:+:$PYTHONPATH}"
    export JUPYTER_PATH="$STORE/site/share/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}" # the kernel and nbconvert's templates
fi
model=()
if compgen -G "$STORE/*.gguf.part-*" >/dev/null; then
    name=$(basename "$(ls "$STORE"/*.gguf.part-* | head -1)")
    name=${name%.part-*}
    if [ ! -f "$STORE/$name" ]; then
        cat "$STORE/$name".part-* >"$STORE/$name.joined"
        sum=$(sha256sum <"$STORE/$name.joined" | cut -d " " -f 1)
        if [ "$sum" != "$(cut -d " " -f 1 "$STORE/$name.sha256")" ]; then
            echo "$STORE/$name: a part is missing or broken; receive both halves again" >&2
            exit 1
        fi
        mv "$STORE/$name.joined" "$STORE/$name"
    fi
    model=(--model "$STORE/$name")
fi
exec "$PYTHON" bench/gpu.py ${model[@]+"${model[@]}"} "$@"
