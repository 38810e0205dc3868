# For the scripts beside it, which have set `root`: sets `runtime` to the program that RUNTIME names, or the archive's, or what was last built.
if [ -n "${RUNTIME:-}" ]; then
    runtime=$RUNTIME
elif [ -x "$root/bin/runtime" ]; then
    runtime=$root/bin/runtime
else
    runtime=$(cd "$root" && realpath -m "${CARGO_TARGET_DIR:-target}")/release/runtime
fi
if [ ! -x "$runtime" ]; then
    echo "there is no program $runtime: build it with 'cargo build --release --package runtime', or name it in RUNTIME" >&2
    exit 1
fi
