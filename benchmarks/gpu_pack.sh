#!/usr/bin/env bash
# All that benchmarks/gpu_check.sh would have to build, built beforehand without a GPU, so that a lent one only measures:
#   benchmarks/gpu_pack.sh [PART ...]      parts: wheel tests variants photographs (default: all)
# build/gpu_pack then holds the wheel (sm_90, every Python from 3.10), the standalone tests of the kernels, variants of the
# CUDA library (threads of a block x blocks of a multiprocessor, memory of all blocks), photographs to score, what the
# compiler says of registers, and MANIFEST.txt with sizes and sums; together less than LIMIT_MB (default 60). REFS names a
# folder of photographs to train on, of which REFS_MB (default 20), evenly chosen by name, go along. Needs nvcc,
# CMake and a torch of CUDA's major version; minutes on two cores. PYTHON chooses the interpreter, MAX_JOBS the compiles at a
# time, TORCH_CUDA_ARCH_LIST another GPU (default 9.0).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} pack=$PWD/build/gpu_pack objects=$PWD/build # those of other builds are used where they are new
# threads x blocks of a multiprocessor, bytes: 65,536 registers / (threads x blocks) are a thread's; 512x2-1g is the wheel's
variants=(512x1-1g 256x4-1g 256x4-4g 256x2-1g 512x2-4g)
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(wheel tests variants photographs)
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} MAX_JOBS=${MAX_JOBS:-2} SHAMISA_CUDA=1
mkdir -p "$pack/logs"

# what ptxas says of every kernel: its name, then registers and spills
registers() { grep -E "Compiling entry|Used [0-9]+ registers|spill" "$1" | c++filt | sed 's/^ptxas info *: *//' || true; }

# setup NAME ARGUMENTS...: setup.py with the flags of a variant, output to NAME.log
setup() {
  local name=$1
  shift
  if ! "$python" setup.py "$@" >"$pack/logs/$name.log" 2>&1; then
    tail -n 40 "$pack/logs/$name.log" >&2
    return 1
  fi
}

# the object whose flags differ is made anew; no other depends on them
forget() { find "$objects"/temp.* -name distort.o -path '*/cuda/*' -delete 2>/dev/null || true; }

part_wheel() {
  rm -rf "$pack"/*.whl build/lib.* # what was removed from the package would stay in the wheel
  forget
  NVCC_APPEND_FLAGS="-Xptxas=-v" setup wheel bdist_wheel --dist-dir "$pack"
  registers "$pack/logs/wheel.log" >"$pack/registers.txt" # of what was compiled now, distort_images at least
}

part_tests() {
  local generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S . -B "$objects/gpu_pack_tests" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CUDA_ARCHITECTURES="${TORCH_CUDA_ARCH_LIST//./}" >"$pack/logs/tests.log"
  cmake --build "$objects/gpu_pack_tests" -j "$MAX_JOBS" --target kernels_gpu relations_gpu >>"$pack/logs/tests.log" ||
    { tail -n 40 "$pack/logs/tests.log" >&2; return 1; }
  mkdir -p "$pack/tests"
  find "$objects/gpu_pack_tests" -name '*_gpu' -type f -exec cp {} "$pack/tests" \;
}

part_variants() {
  local name threads blocks memory
  rm -rf "$pack/variants"
  for name in "${variants[@]}"; do
    IFS=x- read -r threads blocks memory <<<"$name"
    forget
    NVCC_APPEND_FLAGS="-Xptxas=-v -DSHAMISA_DISTORT_THREADS=$threads -DSHAMISA_DISTORT_BLOCKS=$blocks -DSHAMISA_DISTORT_MEMORY=$((${memory%g} << 30))ll" \
      setup "$name" build_ext --build-lib "$pack/variants/$name"
    gzip -9c "$pack/variants/$name/shamisa/_C_cuda.abi3.so" >"$pack/variants/$name/_C_cuda.abi3.so.gz"
    rm -r "$pack/variants/$name/shamisa" # the other libraries are those of the wheel
    registers "$pack/logs/$name.log" | grep -A3 distort_images >"$pack/variants/$name/registers.txt"
  done
  forget # so that no later build takes the last variant for its own
}

part_photographs() {
  "$python" - "$pack/photographs" <<'PY'
import sys
from pathlib import Path

from PIL import Image

from shamisa.data.embedded import EmbeddedPhotos

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
for split in ("train", "test"):
    photos = EmbeddedPhotos(split, leaves=0)
    for i in range(len(photos)):  # 512 x 384, a size of the labelled sets
        picture = Image.fromarray(photos[i].permute(1, 2, 0).numpy()).resize((512, 384), Image.Resampling.LANCZOS)
        picture.save(folder / f"{photos.name(i)}.jpg", quality=92)
PY
  rm -rf "$pack/refs"
  [ -z "${REFS:-}" ] || "$python" - "$REFS" "$pack/refs" "${REFS_MB:-20}" <<'PY'
import shutil
import sys
from pathlib import Path

source, folder, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) << 20
files = sorted(p for p in source.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
if not files:
    sys.exit(f"REFS must be a folder that holds photographs, got {source}")
folder.mkdir()
total = sum(p.stat().st_size for p in files)
share, owed = min(1.0, room / total), 0.0
for path in files:  # each time that the share of what was passed comes to this photograph
    size = path.stat().st_size
    owed += share * size
    if owed >= size:
        owed -= size
        shutil.copyfile(path, folder / path.name)
PY
}

main() { # bash reads a script as it goes: a function is read whole, so that a changed file cannot confuse a run
  local part start total
  for part in "${parts[@]}"; do
    declare -F "part_$part" >/dev/null || { echo "parts: wheel tests variants photographs, got $part" >&2; exit 2; }
  done
  for part in "${parts[@]}"; do
    start=$SECONDS
    "part_$part"
    echo "$part: $((SECONDS - start)) s"
  done
  cd "$pack"
  find . -type f ! -name MANIFEST.txt ! -path './logs/*' -printf '%s %P\n' | sort -k2 | while read -r bytes file; do
    printf '%10d  %s  %s\n' "$bytes" "$(sha256sum "$file" | cut -c1-16)" "$file"
  done >MANIFEST.txt
  cat MANIFEST.txt
  total=$(awk '{ n += $1 } END { print n }' MANIFEST.txt)
  printf '%10d  bytes in all\n' "$total"
  if [ "$total" -gt $((${LIMIT_MB:-60} << 20)) ]; then
    echo "more than ${LIMIT_MB:-60} MiB" >&2
    exit 1
  fi
}
main
