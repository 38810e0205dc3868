# Sourced by the other scripts, after they have set `root`. Sets `runtime` to the program: RUNTIME if it is set, or else the program in
# the archive, or else the last release build.
if [ -n "${RUNTIME:-}" ]; then
    runtime=$RUNTIME
elif [ -x "$root/bin/runtime" ]; then
    runtime=$root/bin/runtime
else
    runtime=$(cd "$root" && realpath -m "${CARGO_TARGET_DIR:-target}")/release/runtime
fi
if [ ! -x "$runtime" ]; then
    echo "$runtime is not a program: build it with 'cargo build --release --package runtime', or set RUNTIME" >&2
    exit 1
fi
