#!/usr/bin/env bash
# Run the program over several sizes and write out/results.csv, one row per kernel and size.
#
#   ./bench.sh [N...]        ITERATIONS=50 BLOCK_SIZE=512 ./bench.sh 1048576
set -euo pipefail
cd "$(dirname "$0")"

sizes=("$@")
[ "${#sizes[@]}" -gt 0 ] || sizes=(1048576 4194304 16777216 67108864)

make -s >&2
mkdir -p out
trap 'rm -f out/results.csv.part' EXIT
echo "kernel,n,block_size,ms,gb_per_s,device" > out/results.csv.part
for n in "${sizes[@]}"; do
  shown=$(./build/vector_add "$n" "${ITERATIONS:-20}")
  printf '%s\n\n' "$shown" >&2
  awk '
    /^device: / { device = substr($0, 9); gsub(/"/, "\"\"", device) }
    /^n: /      { n = $2; block = $5; sub(/,/, "", n); sub(/,/, "", block) }
    / GB\/s$/   { sub(/:/, "", $1); printf "%s,%s,%s,%s,%s,\"%s\"\n", $1, n, block, $2, $4, device }
  ' <<< "$shown" >> out/results.csv.part
done
mv out/results.csv.part out/results.csv
cat out/results.csv
