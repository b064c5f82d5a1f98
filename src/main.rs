//! The `batchyard` command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = batchyard::supervise(std::env::args_os()) {
        return code;
    }
    ExitCode::SUCCESS
}
