//! The `runtime` binary. See [`runtime::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::cli::main()
}
