#!/usr/bin/env bash
# Everything that a GPU has to show, in at most twelve minutes, what matters most first, on a bare machine without network:
#   benchmarks/gpu_check.sh [--no-gpu] [--resume] [--only STAGE,STAGE] [STAGE ...]
#   stages: build agreement ceilings speed steps scorer sanitizer tests variants train profile
# Without stages: all but profile, in this order. Each has a limit of its own (LIMIT, seconds, overrides them all) and none
# starts once TOTAL seconds (default 720) are over; one that fails or is stopped leaves what the others found. --resume
# leaves out the stages that passed in this checkout before. Results, verdicts and logs (logs.tar.gz) go to $OUT (default
# ./out) as they come, few files to bring home; a table comes last. What benchmarks/gpu_pack.sh built beforehand (PACK,
# default build/gpu_pack) is used where it is there, and built otherwise. --no-gpu rehearses all of it on a CPU, small where
# it would take long. PRESET and REFS choose what the stage train trains (default paper, the pack's photographs or
# else embedded), PHOTOGRAPHS a folder of JPEGs to score. PYTHON chooses the interpreter (default python3), which needs torch,
# torchvision, numpy, scipy, scikit-learn, scikit-image, pillow, safetensors, tqdm, matplotlib, pytest, pytest-benchmark,
# hypothesis for some tests, and to build setuptools and ninja; nvcc, CMake, compute-sanitizer and ncu where they are found.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
declare -A limits=([build]=300 [agreement]=60 [ceilings]=20 [speed]=120 [steps]=120 [scorer]=45 [sanitizer]=120 [tests]=120
  [variants]=90 [train]=120 [profile]=60)
order=(build agreement ceilings speed steps scorer sanitizer tests variants train)
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
fresh=0 # from the beginning
[ ${#stages[@]} -gt 0 ] || { stages=("${order[@]}"); fresh=$((1 - resume)); }
python=${PYTHON:-python3} total=${TOTAL:-720}
for word in "$total" "${LIMIT:-1}"; do
  [[ $word =~ ^[1-9][0-9]*$ ]] || { echo "TOTAL and LIMIT must be whole seconds > 0, got '$word'" >&2; exit 2; }
done
mkdir -p "${OUT:=out}" || exit 2
OUT=$(cd "$OUT" && pwd)
work=${WORK:-$PWD/build/gpu_check} pack=${PACK:-$PWD/build/gpu_pack}
logs=$work/logs site=$work/site rows=$OUT/rows.jsonl
mkdir -p "$logs" || exit 2
export OMP_WAIT_POLICY=passive MPLBACKEND=Agg PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
device=cuda
if [ "$gpu" = 0 ]; then # none is used even where there is one
  export CUDA_VISIBLE_DEVICES=""
  device=cpu
fi

# run NAME COMMAND...: at most what is left of the stage's time, and CAP seconds where that is set, output to NAME.log of the logs, its last lines here
run() {
  local name=$1 left=$((deadline - SECONDS)) status
  shift
  [ "$left" -le "${CAP:-$left}" ] || left=$CAP
  if [ "$left" -le 0 ]; then echo "$name: no time left" | tee "$logs/$name.log"; return 124; fi
  timeout --kill-after=10 "$left" "$@" >"$logs/$name.log" 2>&1
  status=$?
  tail -n "${LINES_SHOWN:-4}" "$logs/$name.log" | cut -c1-180 | sed 's/^/    /'
  return "$status"
}

skip() { echo "skipped: $1"; return 77; }

# the package from the wheel that was built beforehand, for every Python process from here on
use_wheel() {
  local wheel
  wheel=$(ls "$pack"/shamisa-*.whl 2>/dev/null | head -1)
  [ -n "$wheel" ] || return 0
  if [ ! -d "$site" ]; then "$python" -m zipfile -e "$wheel" "$site" || return 0; fi
  export PYTHONPATH=$site:$PYTHONPATH
}

stage_build() {
  local cuda=$gpu
  if ! "$python" -c "import shamisa; assert '$device' in shamisa.backends()['distort']" 2>"$logs/import.log"; then
    SHAMISA_CUDA=$cuda run build "$python" setup.py -q build_ext --inplace || return
  fi
  run backends "$python" -c '
import json, sys, shamisa, torch
device = "cuda" if torch.cuda.is_available() else "cpu"
missing = [op for op, has in shamisa.backends().items() if device not in has]
from shamisa import _host
info = _host.build_info()
name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
python = sys.version.split()[0]
print(f"Python {python}, torch {torch.__version__}, {name}; built of {info['"'commit'"']} with torch {info['"'torch'"']}")
print(f"without a compiled kernel for {device}:", ", ".join(missing) or "none")
assert device in shamisa.backends()["distort"], f"no distort kernel for {device}"'
}

stage_agreement() { LINES_SHOWN=50 run agreement "$python" benchmarks/agreement.py --out "$OUT/agreement.json"; }

stage_ceilings() { LINES_SHOWN=6 run ceilings "$python" benchmarks/ceilings.py --out "$OUT/ceilings.json"; }

# bench NAME EXPRESSION TEST...: benchmarks that pytest -k chooses, in this order; each row is kept as soon as it is measured
bench() {
  local name=$1 chosen=$2 status quick=()
  shift 2
  [ "$gpu" = 1 ] || quick=(--quick)
  LINES_SHOWN=2 run "bench-$name" "$python" -m pytest "${@/#/benchmarks/test_}" --benchmark-only --benchmark-columns=median \
    ${quick[@]+"${quick[@]}"} -q -p no:cacheprovider -k "$chosen" --rows "$rows"
  status=$?
  if [ -s "$rows" ] && python3 benchmarks/rows.py "$rows" "$OUT/benchmarks.json" >>"$logs/rows.log" 2>&1; then
    python3 benchmarks/report.py "$OUT/benchmarks.json" >"$OUT/benchmarks.md" 2>>"$logs/rows.log"
  fi
  return "$status"
}

stage_speed() { # in processes of their own: what one fails in does not keep the next from running
  local status=0 one="$device and native" engine=test_engine_gpu
  local sizes="$device-native-2] or $device-native-16] or $device-native-128] or graph"
  if [ "$gpu" = 0 ]; then engine="test_engine[native]" sizes="cpu-native-1] or cpu-native-2]"; fi
  bench engine "$engine or (test_chain and $one)" distortions.py::${engine%[*} distortions.py::test_chain || status=$?
  bench loss "$sizes" relations.py::test_loss || status=$?
  bench each "$one" distortions.py::test_distortion relations.py::test_op || status=$?
  return "$status"
}

stage_steps() { bench steps "$device and not reference and not threads" step.py; }

stage_scorer() { SHAMISA_PHOTOGRAPHS=${PHOTOGRAPHS:-$(folder "$pack/photographs")} bench scorer "$device" scorer.py; }

folder() { if [ -d "$1" ]; then echo "$1"; fi; }

stage_variants() {
  if [ "$gpu" = 0 ]; then
    LINES_SHOWN=12 run variants "$python" benchmarks/variants.py --small --out "$OUT/variants.json"
    return
  fi
  [ -d "$pack/variants" ] && [ -d "$site" ] || { skip "no variants were built beforehand"; return; }
  LINES_SHOWN=12 run variants "$python" benchmarks/variants.py "$site" "$pack/variants" --out "$OUT/variants.json"
}

# a leg of a training for the time that is left; a later call goes on with it where its folder is still there
stage_train() {
  local run_folder=$work/run left=$((deadline - SECONDS)) status preset=${PRESET:-paper} arguments
  local refs=${REFS:-$(folder "$pack/refs")}
  [ "$gpu" = 1 ] || preset=${PRESET:-demo}
  arguments=(--preset "$preset" --refs "${refs:-embedded}" --init none --check-every 0 --out "$run_folder" --no-demo)
  [ -e "$run_folder/metrics.jsonl" ] && arguments=(--resume "$run_folder")
  # asked to stop, it saves a checkpoint first
  left=$((left - 20))
  if [ "$left" -le 0 ]; then echo "train: no time left"; return 124; fi
  timeout --signal=TERM --kill-after=20 "$left" "$python" -m shamisa.train "${arguments[@]}" >"$logs/train.log" 2>&1
  status=$?
  tail -n 4 "$logs/train.log" | tr '\r' '\n' | tail -n 4 | cut -c1-180 | sed 's/^/    /'
  [ -s "$run_folder/metrics.jsonl" ] || return $((status ? status : 1))
  gzip -c "$run_folder/metrics.jsonl" >"$OUT/train.jsonl.gz"
  case $status in 0 | 3 | 124 | 143) return 0 ;; *) return "$status" ;; esac
}

stage_tests() { # the tests that use a GPU, and those of the ops; on a CPU a few of them
  local workers=() count=1 cores chosen=(tests/test_native.py tests/test_relation_cuda.py tests/test_relation_cuda_terms.py
    tests/test_resize.py tests/test_randomness.py tests/test_ranges.py tests/test_crops.py tests/test_graphed.py
    tests/test_distort.py tests/test_codecs.py tests/test_engine.py tests/test_relations.py tests/test_functional.py)
  [ "$gpu" = 1 ] || chosen=(tests/test_randomness.py tests/test_resize.py)
  cores=$(nproc)
  # a GPU is shared by a few workers at most; without xdist one process does it
  if "$python" -c 'import xdist' 2>/dev/null; then
    count=$((gpu == 1 && cores > 8 ? 8 : cores))
    workers=(-n "$count")
  fi
  OMP_NUM_THREADS=$((cores / count)) run tests "$python" -m pytest -q "${workers[@]}" -m "not slow" -p no:cacheprovider \
    --continue-on-collection-errors --junitxml="$work/logs/tests.xml" "${chosen[@]}"
}

stage_sanitizer() {
  local folder=$work/native options=(-DCMAKE_BUILD_TYPE=Release) test tool check
  command -v ninja >/dev/null && options+=(-G Ninja)
  if [ "$gpu" = 0 ]; then
    command -v cmake >/dev/null || { skip "no cmake"; return; }
    # the same kernels under the emulator with the compiler's sanitizers
    run sanitizer-configure cmake -S . -B "$folder-cpu" "${options[@]}" -DSHAMISA_SANITIZE=ON -DSHAMISA_GPU_TESTS=OFF &&
      run sanitizer-build cmake --build "$folder-cpu" --target kernels_emulated relations_emulated &&
      run kernels-emulated "$folder-cpu/kernels_emulated" && run relations-emulated "$folder-cpu/relations_emulated"
    return
  fi
  if [ -x "$pack/tests/kernels_gpu" ] && [ -x "$pack/tests/relations_gpu" ]; then
    folder=$pack/tests
  else
    command -v cmake >/dev/null || { skip "no cmake"; return; }
    run sanitizer-configure cmake -S . -B "$folder" "${options[@]}" -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-90}" &&
      run sanitizer-build cmake --build "$folder" --target kernels_gpu relations_gpu || return
    folder=$folder/tests/native/gpu
  fi
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
  for test in relations kernels; do
    run "$test-gpu" "$folder/${test}_gpu" || return
  done
  [ -n "$tool" ] || { skip "no compute-sanitizer (the kernels' own tests passed)"; return; }
  # the ops of a small size whole, as torch calls them, each tensor in an allocation of its own; then the programs, which may
  # not end: a check that runs out of its time has found nothing so far
  local status=0
  for check in memcheck racecheck; do
    CAP=40 PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize "ops-$check" --kernel-regex kns=shamisa --tool "$check" \
      "$python" -m pytest -q -p no:cacheprovider tests/test_relation_cuda.py tests/test_relation_cuda_terms.py \
      -k "equals_reference and gpu and (65 or 520)" || status=$?
    [ "$status" != 77 ] || return 77
    for test in relations kernels; do
      CAP=25 sanitize "$test-$check" --tool "$check" "$folder/${test}_gpu" || status=$?
    done
  done
  return "$status"
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
  if [ "$fresh" = 1 ]; then rm -rf "$work/stages.txt" "$rows" "$site" "$work/run"; fi
  touch "$work/stages.txt" # a verdict a line; a stage that is not run this time keeps its last one
  use_wheel
  for stage in "${stages[@]}"; do
    if [ "$resume" = 1 ] && grep -Eq "^$stage +passed " "$work/stages.txt"; then continue; fi
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
    { grep -v "^$stage " "$work/stages.txt"; printf '%-12s %-14s %5d s\n' "$stage" "$verdict" $((SECONDS - start)); } >"$work/stages.new"
    mv "$work/stages.new" "$work/stages.txt"
    cp "$work/stages.txt" "$OUT/stages.txt"
    tar -czf "$OUT/logs.tar.gz" -C "$logs" .
  done
  printf '\n'
  python3 benchmarks/gpu_table.py "$OUT" || cat "$OUT/stages.txt"
  exit "$failed"
}
main
