//! The `batchyard` command line.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "faults")]
    batchyard::fault::begin();
    // Each command of a batch runs below a supervisor, which is this program started again.
    if let Some(code) = batchyard::supervise(std::env::args_os()) {
        return code;
    }
    cli::main()
}
