#!/usr/bin/env bash
# Everything that a GPU has to show, on a bare machine without network, what matters most first:
#   benchmarks/gpu_check.sh [--no-gpu] [--resume] [--only STAGE,STAGE] [STAGE ...]
#   stages: build agreement ceilings benchmarks sanitizer tests profile
# Without stages: all but profile, in this order. Each has a limit of its own (LIMIT, seconds, overrides them all) and none
# starts once TOTAL seconds (default 720) are over; one that fails or is stopped leaves what the others found. --resume
# leaves out the stages that passed into the same $OUT before. Results, verdicts and logs (logs.tar.gz) go to $OUT (default
# ./out) after each stage, few files to bring home; a table of verdicts comes last. Kernels that are built already are kept.
# --no-gpu runs what can run on a CPU. BENCHMARKS chooses benchmarks as pytest -k does (default: those of the GPU, or of
# the CPU), PARTS the files (default: step relations distortions probe loader). PYTHON chooses the interpreter (default
# python3), which needs torch, torchvision, numpy, scipy, scikit-learn, scikit-image, pillow, safetensors, tqdm, matplotlib,
# setuptools, ninja, pytest, pytest-benchmark, and hypothesis for some tests; nvcc, CMake, compute-sanitizer and ncu are used
# where they are found.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
declare -A limits=([build]=300 [agreement]=60 [ceilings]=60 [benchmarks]=240 [sanitizer]=120 [tests]=120 [profile]=120)
order=(build agreement ceilings benchmarks sanitizer tests)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "benchmarks/$(basename "$0")" >&2; exit 2; }
gpu=1 resume=0 stages=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-gpu) gpu=0 ;;
    --resume) resume=1 ;;
    --only) [ $# -gt 1 ] || usage; IFS=, read -ra chosen <<<"$2"; stages+=("${chosen[@]}"); shift ;;
    *) stages+=("$1") ;;
  esac
  shift
done
for word in ${stages[@]+"${stages[@]}"}; do
  [ -n "$word" ] && [ -n "${limits[$word]:-}" ] || usage
done
[ ${#stages[@]} -gt 0 ] || stages=("${order[@]}")
python=${PYTHON:-python3} total=${TOTAL:-720}
for word in "$total" "${LIMIT:-1}"; do
  [[ $word =~ ^[1-9][0-9]*$ ]] || { echo "TOTAL and LIMIT must be whole seconds > 0, got '$word'" >&2; exit 2; }
done
mkdir -p "${OUT:=out}" || exit 2
OUT=$(cd "$OUT" && pwd)
logs=$PWD/build/gpu_check/logs
mkdir -p "$logs" || exit 2
export OMP_WAIT_POLICY=passive MPLBACKEND=Agg PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
if [ "$gpu" = 0 ]; then export CUDA_VISIBLE_DEVICES=""; fi # none is used even where there is one

# run NAME COMMAND...: at most what is left of the stage's time, output to NAME.log of the logs, its last lines here
run() {
  local name=$1 left=$((deadline - SECONDS)) status
  shift
  if [ "$left" -le 0 ]; then echo "$name: no time left" | tee "$logs/$name.log"; return 124; fi
  timeout --kill-after=10 "$left" "$@" >"$logs/$name.log" 2>&1
  status=$?
  tail -n "${LINES_SHOWN:-4}" "$logs/$name.log" | cut -c1-180 | sed 's/^/    /'
  return "$status"
}

skip() { echo "skipped: $1"; return 77; }

stage_build() {
  local cuda=1
  [ "$gpu" = 1 ] || cuda=0
  local device=cuda
  [ "$gpu" = 1 ] || device=cpu
  if "$python" -c "import shamisa; assert '$device' in shamisa.backends()['distort']" 2>/dev/null; then
    cuda="" # built already, whatever it was built with
  fi
  if [ -n "$cuda" ]; then SHAMISA_CUDA=$cuda run build "$python" setup.py -q build_ext --inplace || return; fi
  run backends "$python" -c '
import json, shamisa, torch
print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
print(json.dumps(shamisa.backends()))
device = "cuda" if torch.cuda.is_available() else "cpu"
missing = [op for op, has in shamisa.backends().items() if device not in has]
print(f"without a compiled kernel for {device}:", ", ".join(missing) or "none")
assert device in shamisa.backends()["distort"], f"no distort kernel for {device}"'
}

stage_tests() {
  local workers=() count=1 cores
  cores=$(nproc)
  # a GPU is shared by a few workers at most; without xdist one process does it
  if "$python" -c 'import xdist' 2>/dev/null; then
    count=$((gpu == 1 && cores > 8 ? 8 : cores))
    workers=(-n "$count")
  fi
  OMP_NUM_THREADS=$((cores / count)) run tests "$python" -m pytest -q "${workers[@]}" -m "not slow" -p no:cacheprovider --continue-on-collection-errors \
    --junitxml="$OUT/tests.xml" tests
}

stage_agreement() { LINES_SHOWN=50 run agreement "$python" benchmarks/agreement.py --out "$OUT/agreement.json"; }

stage_sanitizer() {
  command -v cmake >/dev/null || { skip "no cmake"; return; }
  local folder=$PWD/build/gpu_check options=(-DCMAKE_BUILD_TYPE=Release) test binary tool check
  command -v ninja >/dev/null && options+=(-G Ninja)
  if [ "$gpu" = 0 ]; then # the same kernels under the emulator with the compiler's sanitizers
    run sanitizer-configure cmake -S . -B "$folder-cpu" "${options[@]}" -DSHAMISA_SANITIZE=ON -DSHAMISA_GPU_TESTS=OFF &&
      run sanitizer-build cmake --build "$folder-cpu" --target kernels_emulated relations_emulated &&
      run kernels-emulated "$folder-cpu/kernels_emulated" && run relations-emulated "$folder-cpu/relations_emulated"
    return
  fi
  run sanitizer-configure cmake -S . -B "$folder" "${options[@]}" -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-90}" &&
    run sanitizer-build cmake --build "$folder" --target kernels_gpu relations_gpu || return
  # registers and spills of every kernel, as the compiler reports them
  grep -E "Compiling entry|registers|spill" "$logs/sanitizer-build.log" >"$OUT/registers.txt"
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
  for test in relations kernels; do
    binary=$(find "$folder" -name "${test}_gpu" -type f | head -1)
    [ -n "$binary" ] || { echo "${test}_gpu was not built"; return 1; }
    run "$test-gpu" "$binary" || return
  done
  [ -n "$tool" ] || { skip "no compute-sanitizer (the kernels' own tests passed)"; return; }
  # the ops of a small size whole, as torch calls them, each tensor in an allocation of its own; then the larger programs
  for check in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize "ops-$check" --kernel-regex kns=shamisa --tool "$check" \
      "$python" -m pytest -q -p no:cacheprovider tests/test_relation_cuda.py tests/test_relation_cuda_terms.py \
      -k "equals_reference and gpu and (65 or 520)" || return
  done
  for test in relations kernels; do
    for check in memcheck racecheck synccheck; do
      sanitize "$test-$check" --tool "$check" "$(find "$folder" -name "${test}_gpu" -type f | head -1)" || return
    done
  done
}

sanitize() { # NAME ARGUMENTS...: under compute-sanitizer
  local name=$1 status
  shift
  run "$name" "$tool" --error-exitcode 9 "$@"
  status=$?
  if [ "$status" != 0 ] && grep -qi "device not supported" "$logs/$name.log"; then
    skip "compute-sanitizer does not work on this machine (the kernels' own tests passed)"
    return
  fi
  return "$status"
}

stage_ceilings() { LINES_SHOWN=12 run ceilings "$python" benchmarks/ceilings.py --out "$OUT/ceilings.json"; }

stage_benchmarks() { # file after file, so that what is measured is kept when time runs out
  local status=0 one part chosen="cuda or gpu" parts=()
  [ "$gpu" = 1 ] || chosen="not cuda and not gpu"
  for part in ${PARTS:-step relations distortions probe loader}; do
    rm -f "$logs/$part.json" # tables of an earlier run would mislead
    LINES_SHOWN=3 run "benchmarks-$part" "$python" -m pytest "benchmarks/test_$part.py" --benchmark-only -q \
      -p no:cacheprovider -k "${BENCHMARKS:-$chosen}" --benchmark-json="$logs/$part.json"
    one=$?
    [ "$one" = 5 ] && continue # nothing of it is for this device
    [ "$one" = 0 ] || status=$one
    [ -s "$logs/$part.json" ] && parts+=("$logs/$part.json")
  done
  [ ${#parts[@]} -gt 0 ] || { echo "no benchmark has results"; return $((status ? status : 5)); }
  "$python" - "$OUT/benchmarks.json" "${parts[@]}" <<'PY' &&
import json, sys

whole, *others = [json.load(open(path)) for path in sys.argv[2:]]
for other in others:
    whole["benchmarks"] += other["benchmarks"]
    whole["ceilings"] = other["ceilings"] | whole["ceilings"]
json.dump(whole, open(sys.argv[1], "w"), indent=1)
PY
    "$python" benchmarks/report.py "$OUT/benchmarks.json" >"$OUT/benchmarks.md" || return
  return "$status"
}

stage_profile() {
  [ "$gpu" = 1 ] || { skip "no GPU"; return; }
  local tool status
  tool=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -1)
  [ -n "$tool" ] || { skip "no ncu"; return; }
  # the clocks are left as they are
  run profile "$tool" --clock-control none --set basic --section MemoryWorkloadAnalysis --section LaunchStats \
    --kernel-name regex:distort --launch-count 4 -f -o "$OUT/profile" "$python" -c '
import torch, shamisa
engine, x = shamisa.DistortionEngine(), torch.randint(0, 256, (8, 6, 3, 224, 224), dtype=torch.uint8, device="cuda")
for step in range(3):
    engine(x, engine.sample(8, seed=1, step=step))
torch.cuda.synchronize()'
  status=$?
  if [ "$status" != 0 ] && grep -qE "Failed to initialize|ERR_NVGPUCTRPERM|LibraryNotLoaded" "$logs/profile.log"; then
    skip "ncu cannot read this machine's counters"
    return
  fi
  [ "$status" = 0 ] && LINES_SHOWN=40 run profile-summary "$tool" --import "$OUT/profile.ncu-rep" --page details
}

main() { # bash reads a script as it goes: a function is read whole, so that a changed file cannot confuse a run
  if [ "$gpu" = 1 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "no GPU that torch of $python can use; --no-gpu runs what can run without" >&2
    exit 2
  fi
  local failed=0 stage start status verdict
  touch "$OUT/stages.txt" # a verdict a line; a stage that is not run this time keeps its last one
  for stage in "${stages[@]}"; do
    if [ "$resume" = 1 ] && grep -Eq "^$stage +passed " "$OUT/stages.txt"; then continue; fi
    printf '\n== %s\n' "$stage"
    start=$SECONDS deadline=$((SECONDS + ${LIMIT:-${limits[$stage]}}))
    [ "$deadline" -le "$total" ] || deadline=$total
    if [ "$SECONDS" -ge "$total" ]; then
      status=124
    else
      "stage_$stage"
      status=$?
    fi
    case $status in
      0) verdict=passed ;;
      77) verdict=skipped ;;
      124 | 137) verdict="out of time" failed=1 ;;
      *) verdict="FAILED ($status)" failed=1 ;;
    esac
    # after each stage, in case the next one is stopped from outside
    { grep -v "^$stage " "$OUT/stages.txt"; printf '%-12s %-14s %5d s\n' "$stage" "$verdict" $((SECONDS - start)); } >"$OUT/stages.new"
    mv "$OUT/stages.new" "$OUT/stages.txt"
    tar -czf "$OUT/logs.tar.gz" -C "$logs" .
  done
  printf '\n'
  cat "$OUT/stages.txt"
  exit "$failed"
}
main
