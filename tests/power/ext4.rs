//! The arbiter: a real ext4, whose disk forgets what was not flushed.
//!
//! ```text
//!   store ── ext4 ── loop device ── a file on the disk that forgets: a flush of the device is a sync of that file
//! ```

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use batchyard::{testing::proof, torture::forgetful::Loss};
use fastrand::Rng;
use tempfile::TempDir;

use crate::{
    Disk, cycles,
    life::{Life, Side},
    seed, skip,
    store::{Backend, in_time},
};

#[tokio::test]
async fn on_a_real_ext4_no_power_cut_loses_what_was_answered() {
    let Some(disk) = Disk::new() else { return };
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    for backend in Backend::ALL {
        let cycles = cycles(3, 15);
        for cycle in 0..cycles {
            let ext4 = match Ext4::make(&disk) {
                Ok(ext4) => ext4,
                Err(why) => return skip("ext4", &why),
            };
            let mut life = Life::new().await;
            disk.forgetful.cut_after(random.u64(20..600));
            let mut answered = 0;
            let path = ext4.folder.path().join("store");
            if let Ok(opened) = in_time("opening", backend.open(&path)).await {
                let mut side = Side::new(opened.queue.clone());
                loop {
                    let step = life.any(&mut random).await;
                    life.go_on(step).await;
                    if !side.goes_on(life.moments.last().unwrap()).await {
                        break;
                    }
                    answered += 1;
                }
                drop(side);
                let _ = opened.end().await;
            }
            let ext4 = ext4.unmounted();
            let loss = if random.bool() {
                Loss::All
            } else {
                Loss::Torn {
                    seed: random.u64(..),
                }
            };
            disk.forgetful.restore(loss);
            let ext4 = ext4.mounted_again();
            let context =
                format!("{backend:?}, cycle {cycle}, {loss:?}, {answered} steps answered");
            let opened = in_time("opening", backend.open(&path)).await;
            let opened = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            let found = life.find(&*opened.queue, answered).await;
            found.unwrap_or_else(|why| panic!("{context}: {why}"));
            opened.end().await.unwrap();
            drop(ext4);
            std::fs::remove_file(disk.path().join("image")).unwrap();
        }
        proof(
            "G1 G2 G3 G8",
            backend.name(),
            format!("{cycles} power cuts of an ext4"),
            &[],
        );
    }
}

/// A mounted ext4 on the disk that forgets.
struct Ext4 {
    device: String,
    image: PathBuf,
    folder: TempDir,
    is_mounted: bool,
}

impl Ext4 {
    /// What is there is durable.
    fn make(disk: &Disk) -> Result<Self, String> {
        let image = disk.path().join("image");
        let file = File::create(&image).unwrap();
        file.set_len(64 << 20).unwrap();
        run(
            "mkfs.ext4",
            &[
                "-q",
                "-F",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                &text(&image),
            ],
        )?;
        file.sync_all().unwrap();
        File::open(disk.path()).unwrap().sync_all().unwrap();
        let mut ext4 = Self {
            device: String::new(),
            image,
            folder: TempDir::new().unwrap(),
            is_mounted: false,
        };
        ext4.mount()?;
        Ok(ext4)
    }

    fn mount(&mut self) -> Result<(), String> {
        self.device = run("losetup", &["--find", "--show", &text(&self.image)])?;
        run(
            "mount",
            &["-t", "ext4", &self.device, &text(self.folder.path())],
        )?;
        self.is_mounted = true;
        Ok(())
    }

    /// After the power was cut: nothing of what is still in memory reaches the disk.
    fn unmounted(mut self) -> Self {
        self.detach();
        self
    }

    fn mounted_again(mut self) -> Self {
        self.mount().unwrap();
        self
    }

    fn detach(&mut self) {
        if self.is_mounted {
            // Lazily, so that a test that failed with its store open leaves nothing.
            run("umount", &["--lazy", &text(self.folder.path())]).unwrap();
            self.is_mounted = false;
        }
        if !self.device.is_empty() {
            run("losetup", &["--detach", &self.device]).unwrap();
            self.device.clear();
        }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        self.detach();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What it printed, or why it failed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}
