//! A process that this program started from itself.

/// Ends this process when the one that started it does, however that ends.
pub(crate) fn die_with_parent() {
    // Where it does not work, an interrupted run leaves a process to end by itself.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}
