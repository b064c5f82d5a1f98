//! `completions` and `man`: what a shell and `man` are to know of this program.

use std::{fs, io, path::PathBuf};

use clap::{Args, Command, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    exit::{Exit, Failure},
    output::{print, say},
};

/// Options of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard completions bash > ~/.local/share/bash-completion/completions/batchyard"
)]
pub(crate) struct CompletionsArgs {
    /// The shell that is to complete
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard man --dir ~/.local/share/man/man1 && man batchyard-dispatch"
)]
pub(crate) struct ManArgs {
    /// Write the pages of the program and of every verb into this folder, instead of the first one to stdout
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Prints what a shell reads.
pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, PROGRAM, &mut script);
    print(&script)?;
    Ok(Exit::Ok)
}

/// Prints or writes what `man` reads.
pub(super) fn man(args: &ManArgs, command: Command) -> Result<Exit, Failure> {
    let Some(folder) = &args.dir else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        print(&page)?;
        return Ok(Exit::Ok);
    };
    let written = fs::create_dir_all(folder).and_then(|()| {
        clap_mangen::generate_to(command, folder)?;
        count(folder)
    });
    let pages = written.map_err(|error| Failure::io(folder.display(), &error))?;
    say(&format!("{pages} pages in {}", folder.display()));
    Ok(Exit::Ok)
}

/// How many pages of ours there are.
fn count(folder: &PathBuf) -> io::Result<usize> {
    let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let is_ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(PROGRAM);
    Ok(names.iter().filter(|name| is_ours(name)).count())
}

const PROGRAM: &str = "batchyard";
