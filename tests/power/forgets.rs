//! The disk that forgets keeps what was synced, and nothing else.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
};

use batchyard::torture::forgetful::{Call, DiskError, FailPlan, Loss, Rules};

use crate::Disk;

fn cut(disk: &Disk) {
    disk.forgetful.cut();
    assert!(fs::read_dir(disk.path()).is_err(), "the power is off");
    disk.forgetful.restore(Loss::All);
}

fn sync_folder(disk: &Disk) {
    File::open(disk.path()).unwrap().sync_all().unwrap();
}

#[test]
fn bytes_are_kept_by_a_sync_of_the_file_and_its_name_by_one_of_the_folder() {
    let Some(disk) = Disk::new() else { return };
    let (kept, nameless, empty) = ["kept", "nameless", "empty"]
        .map(|name| disk.path().join(name))
        .into();
    for path in [&kept, &empty] {
        File::create(path).unwrap();
    }
    sync_folder(&disk);
    let mut file = OpenOptions::new().write(true).open(&kept).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_data().unwrap();
    file.write_all(b" and not").unwrap();
    fs::write(&empty, "not synced").unwrap();
    let mut file = File::create(&nameless).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(&kept).unwrap(), b"synced and not");
    cut(&disk);
    assert_eq!(fs::read(&kept).unwrap(), b"synced");
    assert_eq!(fs::read(&empty).unwrap(), b"");
    assert!(!nameless.exists());
    assert!(file.write_all(b"late").is_err(), "it was open before");
}

#[test]
fn sync_file_range_is_no_sync() {
    let Some(disk) = Disk::new() else { return };
    let path = disk.path().join("file");
    let mut file = File::create(&path).unwrap();
    sync_folder(&disk);
    file.write_all(b"sled's flush").unwrap();
    let program = "import os, sys, ctypes; f = os.open(sys.argv[1], os.O_RDWR); \
        sys.exit(ctypes.CDLL(None).sync_file_range(f, ctypes.c_longlong(0), ctypes.c_longlong(0), 7))";
    let python = std::process::Command::new("python3")
        .args(["-c", program])
        .arg(&path)
        .status();
    match python {
        Ok(status) => assert!(status.success()),
        Err(error) => println!("without python3: {error}"),
    }
    cut(&disk);
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn a_rename_is_the_old_or_the_new_name_and_ext4_keeps_names_with_any_sync() {
    let Some(disk) = Disk::new() else { return };
    let (old, new, other) = (
        disk.path().join("old"),
        disk.path().join("new"),
        disk.path().join("other"),
    );
    for rules in [Rules::Strict, Rules::Ext4] {
        disk.forgetful.set_rules(rules);
        fs::write(&old, "old").unwrap();
        File::open(&old).unwrap().sync_all().unwrap();
        sync_folder(&disk);
        fs::rename(&old, &new).unwrap();
        let file = File::create(&other).unwrap();
        file.sync_all().unwrap();
        cut(&disk);
        let is_there = [&old, &new, &other].map(|path| path.exists());
        let expected = match rules {
            Rules::Strict => [true, false, false],
            Rules::Ext4 => [false, true, true],
        };
        assert_eq!(is_there, expected, "{rules:?}");
        for name in fs::read_dir(disk.path()).unwrap() {
            fs::remove_file(name.unwrap().path()).unwrap();
        }
    }
    for seed in 0..40 {
        fs::write(&old, "old").unwrap();
        File::open(&old).unwrap().sync_all().unwrap();
        sync_folder(&disk);
        fs::rename(&old, &new).unwrap();
        disk.forgetful.cut();
        disk.forgetful.restore(Loss::Torn { seed });
        let found = [&old, &new].map(|path| fs::read(path).ok());
        assert_eq!(found.iter().flatten().count(), 1, "{found:?}");
        let _ = fs::remove_file(&new);
    }
}

#[test]
fn a_torn_loss_keeps_any_sectors_each_in_any_state_since_the_last_sync() {
    let Some(disk) = Disk::new() else { return };
    let path = disk.path().join("file");
    let file = File::create(&path).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_all().unwrap();
    sync_folder(&disk);
    file.write_all_at(&[2; 8192], 0).unwrap();
    file.write_all_at(&[3; 8192], 0).unwrap();
    file.write_all_at(&[4; 4096], 8192).unwrap();
    disk.forgetful.cut();
    let dark = disk.forgetful.keep();
    let (mut states, mut sizes) = ([0; 5], std::collections::BTreeSet::new());
    for seed in 0..40 {
        disk.forgetful.go_back(&dark);
        disk.forgetful.restore(Loss::Torn { seed });
        let bytes = fs::read(&path).unwrap();
        sizes.insert(bytes.len());
        for sector in bytes.chunks(512) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "sectors are whole"
            );
            states[usize::from(sector[0])] += 1;
        }
    }
    assert!(states.iter().all(|count| *count > 10), "{states:?}");
    assert!(
        sizes.contains(&8192) && sizes.contains(&12288) && sizes.len() > 4,
        "{sizes:?}"
    );
}

#[test]
fn a_failed_sync_is_never_made_good_by_another() {
    let Some(disk) = Disk::new() else { return };
    let path = disk.path().join("file");
    let file = File::create(&path).unwrap();
    sync_folder(&disk);
    file.write_all_at(b"gone", 0).unwrap();
    disk.forgetful.fail(Some(FailPlan {
        call: Call::Sync,
        skip: 0,
        once: true,
        error: DiskError::Broken,
    }));
    assert!(file.sync_all().is_err());
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"gone", "still in memory");
    cut(&disk);
    assert_eq!(fs::read(&path).unwrap(), [0; 4]);
}

#[test]
fn a_full_disk_takes_no_more_until_something_goes() {
    let Some(disk) = Disk::new() else { return };
    disk.forgetful.set_space(Some(64 << 10));
    let (one, two) = (disk.path().join("one"), disk.path().join("two"));
    fs::write(&one, vec![1; 48 << 10]).unwrap();
    let full = fs::write(&two, vec![2; 48 << 10]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(
        fs::metadata(&two).unwrap().len(),
        16 << 10,
        "as far as it fits"
    );
    fs::write(&one, vec![3; 48 << 10]).unwrap();
    fs::remove_file(&two).unwrap();
    fs::write(&two, [2; 16 << 10]).unwrap();
}

#[test]
fn the_power_is_cut_at_the_change_that_was_chosen() {
    let Some(disk) = Disk::new() else { return };
    disk.forgetful.cut_after(3);
    let file = File::create(disk.path().join("file")).unwrap();
    file.write_all_at(b"second", 0).unwrap();
    assert!(file.sync_all().is_err());
    assert_eq!(disk.forgetful.cut_was_at().as_deref(), Some("sync"));
    assert_eq!(disk.forgetful.operations(), 3);
}
