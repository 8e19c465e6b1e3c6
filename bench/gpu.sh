#!/usr/bin/env bash
# What only a GPU can tell, in about twelve minutes, with one command.
#
#     bench/gpu.sh [--out FOLDER] [--photos ZIP] [--peer CHECKOUT] [--device cuda] [--tiny] [--only SECTION]
#     bench/gpu.sh --carry FOLDER        beforehand, where there is a network: wheels for a machine that has none
#
# Needs Python 3.11 or newer and torch 2.11 or newer. Small packages that are missing come from bench/wheels (--carry
# bench/wheels) or from PyPI, into FOLDER. Each section is limited in time, and one that fails does not stop the others.
# --tiny rehearses all on a CPU. Writes gpu.json and gpu.png into FOLDER (default: $OUT, or gpu-results).
set -u
bench=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
out=${OUT:-gpu-results} device=cuda only="" tiny="" more=()
packages=(numpy pillow pyyaml jsonschema safetensors tqdm filelock)
while [ $# -gt 0 ]; do
    case $1 in
        --carry) exec "$python" -m pip download --only-binary=:all: --python-version 3.12 --dest "$2" "${packages[@]}" ;;
        --out) out=$2; shift ;;
        --device) device=$2; shift ;;
        --only) only=$2; shift ;;
        --photos | --peer) more+=("$1" "$(realpath "$2")"); shift ;;
        --tiny) tiny=--tiny; device=cpu ;;
        *) echo "unknown: $1; see the first lines of bench/gpu.sh" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$out/packages" && out=$(realpath "$out") || exit 1
export PYTHONPATH=$bench/..:$out/packages PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
declare -A module=([pillow]=PIL [pyyaml]=yaml)
missing=()
for package in "${packages[@]}"; do
    "$python" -c "import ${module[$package]:-$package}" 2>/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]} into $out/packages"
    from=(); [ -d "$bench/wheels" ] && from=(--no-index --find-links "$bench/wheels")
    "$python" -m pip install --quiet --target "$out/packages" "${from[@]}" "${missing[@]}" || exit 1
fi
began=$SECONDS failed=0
# name and limit in seconds; together 12 minutes
for section in golden:90 processes:60 speed:210 features:45 photos:250 resume:60; do
    name=${section%:*} limit=${section#*:}
    [ -n "$tiny" ] && limit=$((limit * 4)) # a CPU with other work imports torch slowly
    [ -n "$only" ] && [ "$only" != "$name" ] && continue
    echo "== $name (at most $limit s)"
    start=$SECONDS
    timeout --kill-after=5 "$limit" "$python" "$bench/gpu_sections.py" "$name" --out "$out" --device "$device" \
        --seconds "$limit" $tiny ${more[@]+"${more[@]}"}
    status=$?
    [ $status -ne 0 ] && failed=$((failed + 1))
    echo "== $name: status $status, $((SECONDS - start)) s"
    echo "{\"section\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - start))}" >"$out/$name.status.json"
done
timeout 30 "$python" "$bench/gpu_sections.py" summary --out "$out" --device "$device" --seconds 30
echo "== all: $((SECONDS - began)) s, $failed sections failed"
exit $((failed > 0))
