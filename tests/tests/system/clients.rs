//! Other people's NBD clients against our device.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use hast_tests::{Context, Failure, Outcome, Pair, Run, Setup, disk, tools};

fn uri(pair: &Pair) -> String {
    format!("nbd+unix:///disk0?socket={}", pair.a.socket("disk0").display())
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    Run::of(&mut command)?.ok(&format!("{program} {}", arguments.join(" ")))
}

#[test]
fn nbdinfo_sees_what_the_export_can_do() -> Outcome {
    if !tools::have(&["nbdinfo"])? {
        return Ok(());
    }
    let pair = Pair::up(Setup::default())?;
    let size = disk::metadata(&pair.a.provider("disk0"))?.datasize;
    pair.a.client("disk0")?.disconnect()?;
    let info = run(pair.directory(), "nbdinfo", &["--json", &uri(&pair)])?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    assert_eq!(export["export-name"], "disk0");
    assert_eq!(export["export-size"], size);
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"] {
        assert_eq!(export[can], true, "{can} in {info:#}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    // The empty name is the same export.
    let unnamed = format!("nbd+unix:///?socket={}", pair.a.socket("disk0").display());
    assert_eq!(run(pair.directory(), "nbdinfo", &["--size", &unnamed])?.trim(), size.to_string());
    let list = run(pair.directory(), "nbdinfo", &["--list", "--json", &unnamed])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    assert_eq!(list["exports"][0]["export-name"], "disk0");
    // A name that is not there is refused.
    let wrong = uri(&pair).replace("///disk0", "///other");
    assert_ne!(Run::of(Command::new("nbdinfo").arg(&wrong))?.code, 0);
    pair.finish()
}

/// A pair on a file system whose holes are told.
fn sparse() -> Result<Pair, Failure> {
    Pair::up(Setup { root: Some("/dev/shm".into()), ..Setup::default() })
}

/// What nbdinfo says is a hole that reads as zeros.
fn holes_of(pair: &Pair) -> Result<Vec<Range<u64>>, Failure> {
    let map = run(pair.directory(), "nbdinfo", &["--map", "--json", &uri(pair)])?;
    let map: serde_json::Value = serde_json::from_str(&map)?;
    let number = |entry: &serde_json::Value, key: &str| entry[key].as_u64().context(format!("{entry}"));
    let mut holes = Vec::new();
    let mut at = 0;
    for entry in map.as_array().context("a map")? {
        assert_eq!(number(entry, "offset")?, at, "{map:#}");
        let end = at + number(entry, "length")?;
        match number(entry, "type")? {
            0 => {}
            3 => holes.push(at..end),
            _ => return Failure::because(format!("{map:#}")),
        }
        at = end;
    }
    assert_eq!(at, pair.a.client("disk0")?.size());
    Ok(holes)
}

/// Everything is a hole but `written`, and what the file system allocates with it.
fn all_but(holes: &[Range<u64>], size: u64, written: &[Range<u64>]) {
    for written in written {
        assert!(holes.iter().all(|hole| hole.end <= written.start || written.end <= hole.start), "{holes:?}");
    }
    let page = 4096;
    let data: u64 = written.iter().map(|written| written.end - written.start + 2 * page).sum();
    let told: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
    assert!(told + data + page >= size, "{holes:?}"); // the last page of the map may be the first of the data
}

#[test]
fn nbdinfo_sees_holes() -> Outcome {
    if !tools::have(&["nbdinfo"])? {
        return Ok(());
    }
    let pair = sparse()?;
    let client = pair.a.client("disk0")?;
    let size = client.size();
    all_but(&holes_of(&pair)?, size, &[]);
    let (first, second) = (1 << 20..(1 << 20) + (1 << 16), 5 << 20..(5 << 20) + 4096);
    client.write(first.start, &disk::pattern(1, 1 << 16))?;
    client.write(second.start, &disk::pattern(2, 4096))?;
    // What no flush has covered is not said to be a hole.
    client.flush()?;
    all_but(&holes_of(&pair)?, size, &[first.clone(), second.clone()]);
    client.trim(first.start, 1 << 16)?;
    client.flush()?;
    // A page that lies in the range in part stays.
    all_but(&holes_of(&pair)?, size, &[second, first.start..first.start, first.end..first.end]);
    client.disconnect()?;
    pair.finish()
}

#[test]
fn nbdcopy_there_and_back() -> Outcome {
    if !tools::have(&["nbdcopy"])? {
        return Ok(());
    }
    let pair = sparse()?;
    let size = pair.a.client("disk0")?.size();
    let mut image = disk::pattern(1, usize::try_from(size)?);
    image[1 << 20..3 << 20].fill(0);
    std::fs::write(pair.directory().join("in"), &image)?;
    run(pair.directory(), "nbdcopy", &["--flush", "in", &uri(&pair)])?;
    run(pair.directory(), "nbdcopy", &[&uri(&pair), "out"])?;
    assert!(std::fs::read(pair.directory().join("out"))? == image, "what comes back is what went in");
    let allocated = std::fs::metadata(pair.directory().join("out"))?.blocks() * 512;
    assert!(allocated <= size - (2 << 20) + 8192, "{allocated} of {size} bytes: holes were copied");
    assert!(disk::data(&pair.b.provider("disk0"))? == image, "the other node has it too");
    disk::same_data(&pair.a.provider("disk0"), &pair.b.provider("disk0"))?;
    pair.finish()
}

#[test]
fn qemu_reads_writes_and_compares() -> Outcome {
    if !tools::have(&["qemu-io", "qemu-img"])? {
        return Ok(());
    }
    let pair = Pair::up(Setup::with("replication fullsync"))?;
    pair.a.client("disk0")?.disconnect()?;
    let size = disk::metadata(&pair.a.provider("disk0"))?.datasize;
    let commands = [
        "write -P 0x5a 0 64k",
        "write -P 0x33 1M 2M",
        "write -f -P 0x44 5M 4k",
        "aio_write -P 0x55 6M 1M",
        "aio_write -P 0x66 7M 1M",
        "aio_flush",
        "write -z 1536k 64k",
        "write -z -u 2M 512k",
        "discard 8M 1M",
        "flush",
        "read -P 0x5a 0 64k",
        "read -P 0x33 1M 512k",
        "read -P 0 1536k 64k",
        "read -P 0x33 1600k 448k",
        "read -P 0 2M 512k",
        "read -P 0x33 2560k 512k",
        "read -P 0x44 5M 4k",
        "read -P 0x55 6M 1M",
        "read -P 0x66 7M 1M",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    let uri = uri(&pair);
    arguments.push(&uri);
    let said = run(pair.directory(), "qemu-io", &arguments)?;
    assert!(!said.contains("failed"), "{said}");
    disk::same_data(&pair.a.provider("disk0"), &pair.b.provider("disk0"))?;
    // The image as qemu sees it is the secondary's data area.
    std::fs::write(pair.directory().join("b.raw"), disk::data(&pair.b.provider("disk0"))?)?;
    let compared = run(pair.directory(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, "b.raw"])?;
    assert!(compared.contains("identical"), "{compared}");
    run(pair.directory(), "qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, "copy"])?;
    assert_eq!(std::fs::metadata(pair.directory().join("copy"))?.len(), size);
    pair.finish()
}

#[test]
fn fio_verifies_what_it_wrote() -> Outcome {
    if !tools::have(&["fio"])? {
        return Ok(());
    }
    let pair = Pair::up(Setup::with("replication memsync\nchecksum crc32\ncompression lzf"))?;
    pair.a.client("disk0")?.disconnect()?;
    let uri = format!("--uri={}", uri(&pair));
    let common = ["--ioengine=nbd", &uri, "--size=8m", "--iodepth=16", "--randrepeat=1", "--fsync=64"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1"];
    for job in [
        ["--name=random", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0"],
        ["--name=big", "--rw=write", "--bs=1m", "--offset=4m"],
    ] {
        let mut arguments = Vec::from(job);
        arguments.extend(common);
        arguments.extend(verify);
        run(pair.directory(), "fio", &arguments)?;
    }
    pair.a.client("disk0")?.flush()?;
    disk::same_data(&pair.a.provider("disk0"), &pair.b.provider("disk0"))?;
    pair.finish()
}

/// nbdkit between the client and us, turning every write into one with FUA.
#[test]
fn nbdkit_as_a_middleman_that_forces_fua() -> Outcome {
    if !tools::have(&["nbdkit", "nbdcopy"])? {
        return Ok(());
    }
    let pair = Pair::up(Setup::with("replication fullsync"))?;
    let size = usize::try_from(pair.a.client("disk0")?.size())?;
    let image = disk::pattern(7, size);
    std::fs::write(pair.directory().join("in"), &image)?;
    let socket = format!("socket={}", pair.a.socket("disk0").display());
    let copy = "nbdcopy in \"$uri\"";
    let arguments =
        ["-U", "-", "--filter=fua", "nbd", &socket, "export=disk0", "fuamode=force", "--run", copy];
    run(pair.directory(), "nbdkit", &arguments)?;
    // With FUA on every write nothing is left to flush.
    assert!(disk::data(&pair.a.provider("disk0"))? == image);
    assert!(disk::data(&pair.b.provider("disk0"))? == image);
    pair.finish()
}

/// Several connections see each other's writes at once.
#[test]
fn connections_share_one_device() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let clients = [
        pair.a.client("disk0")?,
        pair.a.client("disk0")?,
        hast_nbd::client::Client::connect(pair.a.socket("disk0"), "")?,
    ];
    for (n, client) in clients.iter().enumerate() {
        client.write((n as u64) << 20, &disk::pattern(n as u64, 4096))?;
    }
    for reader in &clients {
        for n in 0..clients.len() {
            assert_eq!(reader.read((n as u64) << 20, 4096)?, disk::pattern(n as u64, 4096));
        }
    }
    for client in clients {
        client.disconnect()?;
    }
    pair.finish()
}
