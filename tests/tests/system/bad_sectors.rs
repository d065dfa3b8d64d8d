//! Sectors of a provider's metadata and map that cannot be read until they are written (A3).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hast_format::metadata::{BlockState, Metadata};
use hast_tests::{Failure, LONG, Outcome, Pair, Run, SHORT, Setup, disk, tools, wait_until};

use crate::volume::Volume;

const SECTOR: u64 = 512;
/// Small, so that the map has several sectors.
const EXTENT: u64 = 1024;
/// Extents that a sector of the map stands for.
const EXTENTS: u64 = SECTOR * 8;
/// The first sector of the map.
const MAP: u64 = 8;

/// A disk that nbdkit plays: a file, a directory with the numbers of the sectors that cannot be read, and a file beside
/// that which is there while the disk fails everything.
const READ: &str = r#"
if [ -e "$bad.all" ]; then
    echo "EIO a dead disk" >&2
    exit 1
fi
for path in "$bad"/*; do
    [ -e "$path" ] || continue
    at=$((${path##*/} * 512))
    if [ "$at" -lt $(($4 + $3)) ] && [ $((at + 512)) -gt "$4" ]; then
        echo "EIO a bad sector" >&2
        exit 1
    fi
done
dd if="$image" bs=64k iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none
"#;
const WRITE: &str = r#"
if [ -e "$bad.all" ]; then
    echo "EIO a dead disk" >&2
    exit 1
fi
dd of="$image" bs=64k conv=notrunc oflag=seek_bytes seek="$4" status=none || exit 1
for path in "$bad"/*; do
    [ -e "$path" ] || continue
    at=$((${path##*/} * 512))
    if [ "$at" -ge "$4" ] && [ $((at + 512)) -le $(($4 + $3)) ]; then
        rm "$path"
    fi
done
"#;

const FLUSH: &str = r#"
if [ -e "$bad.all" ]; then
    echo "EIO a dead disk" >&2
    exit 1
fi
"#;

pub(crate) struct BadDisk {
    bad: PathBuf,
    mount: PathBuf,
    /// On top of the file that nbdfuse shows.
    device: Option<PathBuf>,
    programs: Vec<Child>,
}

impl BadDisk {
    /// A disk over the file `image`, as a regular file, or, by root, as a `device` with a page cache of its own. None if
    /// the programs that this takes are not there.
    fn over(image: &Path, device: bool) -> Result<Option<BadDisk>, Failure> {
        if !tools::have(&["nbdkit", "nbdfuse", "fusermount3", "losetup"])? {
            return Ok(None);
        }
        if device && !nix::unistd::geteuid().is_root() {
            if tools::in_ci() {
                return Failure::because("only root can attach a loop device");
            }
            eprintln!("SKIPPED: only root can attach a loop device");
            return Ok(None);
        }
        let (bad, mount) = (image.with_extension("bad"), image.with_extension("mount"));
        let socket = image.with_extension("nbd");
        for directory in [&bad, &mount] {
            std::fs::create_dir_all(directory)?;
        }
        let mut disk = BadDisk { bad, mount, device: None, programs: Vec::new() };
        let method = |name: &str, script: &str| {
            format!("{name}=image='{}'; bad='{}'\n{script}", image.display(), disk.bad.display())
        };
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["--foreground", "--exit-with-parent", "-U"]).arg(&socket).arg("eval");
        nbdkit.arg(method("get_size", "stat -c %s \"$image\""));
        nbdkit.arg(method("pread", READ)).arg(method("pwrite", WRITE));
        nbdkit.arg(method("flush", FLUSH)).args(["can_write=exit 0", "can_flush=exit 0"]);
        // They have a word for each sector that is asked for.
        disk.programs.push(nbdkit.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        wait_until("nbdkit to listen", SHORT, || Ok(socket.exists()))?;
        let mut nbdfuse = Command::new("nbdfuse");
        nbdfuse.arg(disk.file()).arg("--unix").arg(&socket);
        disk.programs.push(nbdfuse.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let file = disk.file();
        wait_until("nbdfuse to show the disk", SHORT, || Ok(file.exists()))?;
        if device {
            // Past the cache of the file, or the smallest thing to fail were a page of that.
            let mut attach = Command::new("losetup");
            let run = Run::of(attach.args(["--find", "--show", "--direct-io=on"]).arg(&file))?;
            disk.device = Some(PathBuf::from(run.ok("losetup")?.trim()));
        }
        Ok(Some(disk))
    }

    fn file(&self) -> PathBuf {
        self.mount.join("disk")
    }

    /// What hast.conf calls `local`.
    fn path(&self) -> PathBuf {
        self.device.clone().unwrap_or_else(|| self.file())
    }

    fn spoil(&self, sectors: &[u64]) -> Outcome {
        for sector in sectors {
            std::fs::write(self.bad.join(sector.to_string()), "")?;
        }
        // What is cached can still be read; that is not what this is about.
        for path in [Some(self.file()), self.device.clone()].into_iter().flatten() {
            let mut forget = Command::new("dd");
            forget.arg(format!("if={}", path.display())).args(["iflag=nocache", "count=0", "status=none"]);
            Run::of(&mut forget)?.ok("dd")?;
        }
        Ok(())
    }

    /// From now on the disk fails everything, or works again.
    pub(crate) fn fail(&self, everything: bool) -> Outcome {
        let all = self.bad.with_extension("bad.all");
        if everything {
            std::fs::write(all, "")?
        } else {
            std::fs::remove_file(all)?
        }
        Ok(())
    }

    /// The sectors that are still bad.
    fn left(&self) -> Result<usize, Failure> {
        Ok(std::fs::read_dir(&self.bad)?.count())
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
            // It goes when nobody uses it any more; the file below it cannot be unmounted before.
            let gone = || Ok(Run::of(Command::new("losetup").arg(device))?.code != 0);
            let _ = wait_until("the loop device to go", LONG, gone);
        }
        let _ = Command::new("fusermount3").arg("-uz").arg(&self.mount).status();
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// A pair of which node a has such a disk, created; nothing runs yet.
fn pair(device: bool) -> Result<Option<(Pair, BadDisk)>, Failure> {
    pair_of(device, EXTENT)
}

/// The same with extents of so many bytes.
pub(crate) fn pair_of(device: bool, extent: u64) -> Result<Option<(Pair, BadDisk)>, Failure> {
    let mut pair = Pair::blank(Setup { extent, ..Setup::default() })?;
    let Some(disk) = BadDisk::over(&pair.a.provider("disk0"), device)? else {
        pair.finish()?;
        return Ok(None);
    };
    pair.setup.resources[0].local_a = Some(disk.path());
    pair.write_conf()?;
    pair.create()?;
    Ok(Some((pair, disk)))
}

/// Makes the copies of node `node` differ from what was written, in this extent, behind everybody's back.
fn garble(node: &hast_tests::Node, extent: u64) -> Outcome {
    use std::os::unix::fs::FileExt;
    let path = node.provider("disk0");
    let at = disk::metadata(&path)?.localoff + extent * EXTENT;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all_at(&[0xee; 512], at)?;
    Ok(())
}

fn good_copy_wins(device: bool) -> Outcome {
    let Some((mut pair, bad)) = pair(device)? else { return Ok(()) };
    pair.start_in_step()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    volume.flush()?;
    pair.a.role("init", "disk0")?;
    pair.b.role("init", "disk0")?;

    // The list, and one of the four sectors of the map.
    bad.spoil(&[0, MAP + 2])?;
    let (first, other) = (2 * EXTENTS + 7, EXTENTS + 7);
    garble(&pair.b, first)?;
    let dump = pair.a.hastctl(&["dump", "-v", "disk0"])?;
    assert!(dump.stderr.contains("is not whole: the list"), "{}", dump.stderr);
    let told = format!("Unable to read 512 bytes of the activemap at offset {}", (MAP + 2) * SECTOR);
    assert!(dump.stderr.contains(&told), "{}", dump.stderr);
    let dump = dump.ok("dump")?;
    assert!(dump.contains(&format!("{}-{}", 2 * EXTENTS, 3 * EXTENTS - 1)), "{dump}");
    let foreseen = pair.a.ctl(&["role", "-n", "primary", "disk0"])?;
    assert!(foreseen.contains("would change from init to primary"), "{foreseen}");
    assert_eq!(bad.left()?, 2, "so far nobody has written");

    // As a primary: what is lost is copied from here.
    pair.b.role("secondary", "disk0")?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    assert_eq!(bad.left()?, 0);
    pair.a.wait_log("Saving it again.")?;
    pair.a.wait_log(&format!(
        "{told} of {}: Input/output error. The {EXTENTS} extents",
        bad.path().display()
    ))?;
    let block = std::fs::read(pair.a.provider("disk0"))?;
    assert_eq!(Metadata::read(&block)?.state, BlockState::Whole);
    let mut volume = volume.moved_to(&pair.a, "disk0")?;
    volume.verify()?;
    volume.verify_provider(&pair.b, "disk0")?;
    volume.scribble(2, 1 << 20, 1 << 20)?;
    volume.flush()?;
    pair.a.role("init", "disk0")?;
    pair.b.role("init", "disk0")?;

    // As a secondary: it is what has to be copied to here, and nothing else is.
    bad.spoil(&[6, MAP + 2])?;
    garble(&pair.a, first)?;
    garble(&pair.a, other)?;
    pair.a.role("secondary", "disk0")?;
    pair.b.role("primary", "disk0")?;
    pair.b.wait_in_step("disk0")?;
    assert_eq!(bad.left()?, 0);
    let right = disk::read(&pair.b.provider("disk0"), 0, 8 << 20)?;
    let found = disk::read(&pair.a.provider("disk0"), 0, 8 << 20)?;
    let differing: Vec<usize> = right
        .chunks(512)
        .zip(found.chunks(512))
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(n, _)| n)
        .collect();
    assert_eq!(differing, [usize::try_from(other * EXTENT / SECTOR)?]);

    // What gives a copy up, and what makes a fresh one.
    for (sectors, command) in [([3, 5, MAP], &["discard", "disk0"][..]), ([1, 7, MAP], &["create", "disk0"])]
    {
        pair.a.role("init", "disk0")?;
        bad.spoil(&sectors)?;
        pair.a.ctl(command)?;
        assert!(bad.left()? <= 1, "{command:?}");
    }
    pair.finish()?;
    drop(bad);
    Ok(())
}

#[test]
fn of_a_file_the_good_copy_wins() -> Outcome {
    good_copy_wins(false)
}

/// Linux reads a disk in pages, and a page of which one sector is bad not at all.
#[test]
fn of_a_disk_the_good_copy_wins() -> Outcome {
    good_copy_wins(true)
}

/// L20: a node that has not met another one has nothing but its map to say that it was written.
#[test]
fn what_a_node_without_a_peer_has_lost_counts_as_written() -> Outcome {
    let Some((mut pair, bad)) = pair(false)? else { return Ok(()) };
    pair.a.start()?;
    pair.b.start()?;
    pair.a.role("primary", "disk0")?;
    let volume = Volume::fresh(&pair.a, "disk0")?;
    volume.client.write(0, &[1; 512])?;
    pair.a.role("init", "disk0")?;
    // The bits of what was written, and they alone.
    bad.spoil(&[MAP])?;
    pair.a.role("secondary", "disk0")?;
    pair.b.role("primary", "disk0")?;
    pair.a.wait_log("This node was primary and has not met another one")?;
    pair.a.wait_log("Split-brain detected")?;
    assert_eq!(bad.left()?, 0);
    // The other way round it is sent.
    pair.b.role("init", "disk0")?;
    pair.b.ctl(&["create", "-e", &EXTENT.to_string(), "disk0"])?;
    pair.b.role("secondary", "disk0")?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    pair.wait_same_data("disk0")?;
    pair.finish()
}
