//! The scripts: one for each verb, assembled from their files.

use std::sync::LazyLock;

/// A script, and the hash by which a server knows it that has seen it.
pub(super) struct Script {
    pub(super) body: String,
    pub(super) hash: String,
}

/// Scripts by verb.
pub(super) struct Scripts {
    pub(super) init: Script,
    pub(super) enlist: Script,
    pub(super) push: Script,
    pub(super) stats: Script,
    pub(super) claim: Script,
    pub(super) read: Script,
    pub(super) update: Script,
    pub(super) status: Script,
    pub(super) list: Script,
    pub(super) results: Script,
    pub(super) cancel: Script,
    pub(super) redrive: Script,
    pub(super) purge: Script,
    pub(super) batches: Script,
    pub(super) release: Script,
    pub(super) dump: Script,
    pub(super) restore_begin: Script,
    pub(super) restore_take: Script,
    pub(super) restore_settled: Script,
    pub(super) restore_end: Script,
}

/// All scripts, assembled once.
pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let fill = |body| assemble(FILLS, &[PRELUDE, SOUND, body]);
    let apart = |body| assemble(FILLS, &[PRELUDE, body]);
    let verb = |body| assemble(DRAINS, &[PRELUDE, SOUND, DUE, body]);
    let entries = |body| assemble(DRAINS, &[PRELUDE, SOUND, DUE, ENTRIES, body]);
    Scripts {
        init: assemble(DRAINS, &[PRELUDE, SOUND, include_str!("init.lua")]),
        enlist: assemble(DRAINS, &[include_str!("enlist.lua")]),
        push: assemble(FILLS, &[PRELUDE, SOUND, DUE, include_str!("push.lua")]),
        stats: verb(include_str!("stats.lua")),
        claim: verb(include_str!("claim.lua")),
        read: assemble(READS, &[PRELUDE, SOUND, include_str!("read.lua")]),
        update: verb(include_str!("update.lua")),
        status: entries(include_str!("status.lua")),
        list: entries(include_str!("list.lua")),
        results: entries(include_str!("results.lua")),
        cancel: entries(include_str!("cancel.lua")),
        redrive: verb(include_str!("redrive.lua")),
        purge: verb(include_str!("purge.lua")),
        batches: verb(include_str!("batches.lua")),
        release: verb(include_str!("release.lua")),
        dump: entries(include_str!("dump.lua")),
        restore_begin: fill(include_str!("restore_begin.lua")),
        restore_take: apart(include_str!("restore_take.lua")),
        restore_settled: apart(include_str!("restore_settled.lua")),
        restore_end: fill(include_str!("restore_end.lua")),
    }
});

fn assemble(header: &str, parts: &[&str]) -> Script {
    let body = [&[header], parts].concat().join("\n");
    let hash = redis::Script::new(&body).get_hash().to_owned();
    Script { body, hash }
}

const PRELUDE: &str = include_str!("prelude.lua");
const SOUND: &str = include_str!("sound.lua");
const DUE: &str = include_str!("due.lua");
const ENTRIES: &str = include_str!("entries.lua");

/// A server without memory refuses a push as a whole, before it begins.
const FILLS: &str = "#!lua";
/// It never refuses what takes work off the queue.
const DRAINS: &str = "#!lua flags=allow-oom";
const READS: &str = "#!lua flags=no-writes,allow-oom";
