//! Sessions against the NBD clients that administrators use: libnbd's tools, QEMU's, fio's and nbdkit's.
//!
//! A tool that is not installed is skipped, plainly; with `CI` set it is missed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hast_nbd::Export;
use server::{Disk, Server};

const SIZE: usize = 32 << 20;

/// A disk behind a socket, and a directory for the test's files.
struct Stage {
    disk: Arc<Disk>,
    server: Server,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(minimum_block: u32) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(SIZE);
        let export = Export::new("data/shared", SIZE as u64, minimum_block);
        let server = Server::start(&dir.path().join("nbd.sock"), export, Arc::clone(&disk));
        Stage { disk, server, dir }
    }

    fn socket(&self) -> &str {
        self.server.path().to_str().unwrap()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the disk's size without any structure.
    fn noise(&self, name: &str) -> PathBuf {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        });
        let bytes: Vec<u8> = words.take(SIZE / 8).flat_map(u64::to_le_bytes).collect();
        let path = self.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Ends the test: no session may have died of a protocol error.
    fn strike(self) {
        drop(self.server);
        assert_eq!(self.disk.errors(), [""; 0]);
    }
}

/// Whether the tools are there. Says so when they are not, and fails in CI.
fn have(tools: &[&str]) -> bool {
    for tool in tools {
        let mut command = Command::new(tool);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
            println!("skipped: {tool} missing");
            return false;
        }
    }
    true
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must succeed, and gives what it printed.
fn run(command: &mut Command) -> String {
    let output = output(command);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{shown}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    shown
}

fn same(file: &Path, disk: &Disk) -> bool {
    std::fs::read(file).unwrap() == *disk.bytes.lock().unwrap()
}

#[test]
fn nbdinfo_sees_the_export() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let stage = Stage::new(512);
    for name in ["data/shared", ""] {
        let text = run(Command::new("nbdinfo").arg("--json").arg(stage.uri(name)));
        for expected in [
            "\"protocol\": \"newstyle-fixed\"",
            "\"structured\": true",
            "\"export-size\": 33554432",
            "\"base:allocation\"",
            "\"is_read_only\": false",
            "\"can_cache\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": false",
            "\"can_flush\": true",
            "\"can_fua\": true",
            "\"can_multi_conn\": true",
            "\"can_trim\": true",
            "\"can_zero\": true",
            "\"block_size_minimum\": 512",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert_eq!(run(Command::new("nbdinfo").arg("--size").arg(stage.uri(name))).trim(), "33554432");
    }
    let list = run(Command::new("nbdinfo").arg("--list").arg("--json").arg(stage.uri("")));
    assert!(list.contains("\"export-name\": \"data/shared\""), "{list}");
    let map = run(Command::new("nbdinfo").arg("--map").arg(stage.uri("")));
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "33554432", "0", "data"]);
    assert!(!output(Command::new("nbdinfo").arg(stage.uri("other"))).status.success());
    stage.strike();
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !have(&["nbdcopy"]) {
        return;
    }
    for (minimum_block, options) in
        [(512, &[][..]), (4096, &["--synchronous"]), (512, &["--connections=4", "--requests=64", "--flush"])]
    {
        let stage = Stage::new(minimum_block);
        let (source, copy) = (stage.noise("source"), stage.file("copy"));
        run(Command::new("nbdcopy").args(options).arg(&source).arg(stage.uri("data/shared")));
        assert!(same(&source, &stage.disk));
        run(Command::new("nbdcopy").args(options).arg(stage.uri("")).arg(&copy));
        assert!(same(&copy, &stage.disk));
        if options.contains(&"--connections=4") {
            assert!(stage.disk.connections.load(Ordering::SeqCst) >= 4);
            assert!(stage.disk.flushes.load(Ordering::SeqCst) > 0);
        }
        // Holes become zeroes.
        std::fs::File::create(&source).unwrap().set_len(SIZE as u64).unwrap();
        run(Command::new("nbdcopy").args(options).arg(&source).arg(stage.uri("")));
        assert!(stage.disk.bytes.lock().unwrap().iter().all(|&byte| byte == 0));
        stage.strike();
    }
}

#[test]
fn qemu_io_and_qemu_img_agree() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    for minimum_block in [512, 4096] {
        let stage = Stage::new(minimum_block);
        let uri = stage.uri("data/shared");
        let mut io = Command::new("qemu-io");
        io.args(["-f", "raw"]);
        for line in [
            "write -P 0x11 0 1M",
            "write -f -P 0x22 1M 64k",
            "aio_write -P 0x33 2M 3M",
            "aio_write -P 0x44 8M 16M",
            "aio_flush",
            "write -z 9M 1M",
            "write -z -u 10M 1M",
            "discard 11M 1M",
            "write -P 0x55 1234567 321",
            "flush",
            "read -P 0x11 0 1M",
            "read -P 0x22 1M 64k",
            "read -P 0x33 2M 3M",
            "read -P 0 9M 3M",
            "read -P 0x44 12M 12M",
            "read -P 0x55 1234567 321",
        ] {
            io.arg("-c").arg(line);
        }
        let text = run(io.arg(&uri));
        assert!(!text.contains("failed") && !text.contains("error"), "{text}");
        assert!(stage.disk.fuas.load(Ordering::SeqCst) > 0);
        assert!(stage.disk.flushes.load(Ordering::SeqCst) > 0);
        let mut expected = vec![0; SIZE];
        expected[..1 << 20].fill(0x11);
        expected[1 << 20..][..64 << 10].fill(0x22);
        expected[2 << 20..][..3 << 20].fill(0x33);
        expected[8 << 20..][..16 << 20].fill(0x44);
        expected[9 << 20..][..3 << 20].fill(0);
        expected[1_234_567..][..321].fill(0x55);
        assert!(*stage.disk.bytes.lock().unwrap() == expected);

        let image = stage.file("image");
        std::fs::write(&image, &expected).unwrap();
        let compare = ["compare", "-f", "raw", "-F", "raw"];
        run(Command::new("qemu-img").args(compare).arg(&image).arg(&uri));
        expected[31 << 20] ^= 1;
        std::fs::write(&image, &expected).unwrap();
        let differs = output(Command::new("qemu-img").args(compare).arg(&image).arg(&uri));
        assert_eq!(differs.status.code(), Some(1), "qemu-img sees one changed byte");
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
        run(Command::new("qemu-img").args(convert).arg(&image).arg(&uri));
        assert!(same(&image, &stage.disk));
        let map = run(Command::new("qemu-img").args(["map", "-f", "raw", "--output=json"]).arg(&uri));
        assert!(map.contains("\"length\": 33554432") && map.contains("\"data\": true"), "{map}");
        stage.strike();
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    let engines = run(Command::new("fio").arg("--enghelp"));
    if !engines.split_whitespace().any(|engine| engine == "nbd") {
        assert!(std::env::var_os("CI").is_none(), "fio has no nbd engine");
        println!("skipped: fio's nbd engine missing");
        return;
    }
    let stage = Stage::new(512);
    run(Command::new("fio")
        .current_dir(stage.dir.path())
        .args(["--name=verify", "--ioengine=nbd", "--rw=randrw", "--bsrange=512-300k", "--bs_unaligned=0"])
        .args(["--size=32m", "--iodepth=64", "--verify=crc32c", "--verify_fatal=1", "--fsync=50"])
        .args(["--randrepeat=1", "--randseed=7"])
        .arg(format!("--uri={}", stage.uri("data/shared"))));
    assert!(stage.disk.flushes.load(Ordering::SeqCst) > 0);
    assert!(stage.disk.bytes.lock().unwrap().iter().any(|&byte| byte != 0));
    stage.strike();
}

#[test]
fn nbdkit_between_asks_for_fua_and_splits() {
    if !have(&["nbdkit", "nbdcopy"]) {
        return;
    }
    for filter in [&["--filter=fua", "fuamode=force"][..], &["--filter=blocksize", "maxdata=4096"]] {
        let stage = Stage::new(512);
        let source = stage.noise("source");
        let (options, parameters): (Vec<&str>, Vec<&str>) =
            filter.iter().partition(|argument| argument.starts_with("--"));
        run(Command::new("nbdkit")
            .args(["-U", "-"])
            .args(options)
            .arg("nbd")
            .arg(stage.uri("data/shared"))
            .args(parameters)
            .arg("--run")
            .arg(format!("nbdcopy {} \"$uri\"", source.display())));
        assert!(same(&source, &stage.disk));
        if filter.contains(&"fuamode=force") {
            assert!(stage.disk.fuas.load(Ordering::SeqCst) > 0);
        }
        stage.strike();
    }
}
