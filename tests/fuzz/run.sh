#!/bin/sh
# Builds the fuzz targets as cargo-fuzz would, without it and without a nightly compiler, and runs
# each in turn, or those that are named: run.sh SECONDS [TARGET]...
set -eu
cd "$(dirname "$0")/../.."

seconds=$1
shift
cargo=${CARGO:-cargo}
own=tests/fuzz
# Everything that is built and found.
out=${CARGO_TARGET_DIR:-target}/fuzz
# Named, so that the flags are for the target alone and not for what runs while it is built.
triple=$(rustc -vV | sed -n 's/^host: //p')

$cargo clippy --locked --manifest-path $own/Cargo.toml --target-dir "$out" --all-targets -- \
    -D warnings

# For -Z, which counts what is covered and finds wrong accesses to memory.
RUSTC_BOOTSTRAP=1
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address"
export RUSTC_BOOTSTRAP RUSTFLAGS
$cargo build --release --locked --manifest-path $own/Cargo.toml --target-dir "$out" \
    --target "$triple" --bins
unset RUSTC_BOOTSTRAP RUSTFLAGS

[ $# -gt 0 ] || set -- $(cd $own/fuzz_targets && ls | sed 's/\.rs$//')
failed=
for name; do
    binary=$out/$triple/release/$name
    scratch=$out/corpus/$name
    artifacts=$out/artifacts/$name
    log=$out/$name.log
    mkdir -p "$scratch" "$artifacts"
    # New octets go to the first directory.
    if "$binary" -max_total_time="$seconds" -timeout=30 -print_final_stats=1 \
        -artifact_prefix="$artifacts/" "$scratch" "$own/corpus/$name" >"$log" 2>&1
    then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$name: $runs runs"
    else
        failed="$failed $name"
        grep -A 4 'panicked at\|^==[0-9]*==ERROR' "$log" || tail -n 20 "$log"
        found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        echo "$name: FAILED, as $log tells. To see it again: $binary ${found:-"$artifacts"/*}"
        echo "A copy of that file in $own/corpus/$name/, by a name that says what is claimed, is" \
            "run by make test from then on."
    fi
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
