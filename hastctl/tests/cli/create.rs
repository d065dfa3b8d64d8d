//! `hastctl create`: the blocks it writes, and what it refuses.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hast_format::nv::{List, Writer};

use crate::captured::{between, block, bytes, masked, names, text};
use crate::program::{Node, Ran, head_of, words};

const DONE: Ran = Ran { status: 0, stdout: String::new(), stderr: String::new() };

/// The one command of a capture, if its provider was created and nothing else happened to it.
fn only_command(description: &str) -> Option<String> {
    let mut lines = block(description, "Steps:").lines().map(str::to_owned).collect::<Vec<_>>();
    lines.retain(|line| line.starts_with("a: hastctl ") || line.starts_with("nbd(a)"));
    match lines.as_slice() {
        [line] => line.strip_prefix("a: hastctl create ").map(str::to_owned),
        _ => None,
    }
}

/// A captured beginning of a provider of `size` bytes as ours lays it out: where the data area leaves room behind it, it
/// begins at a boundary. Nothing else differs.
fn moved(mut captured: Vec<u8>, size: u64) -> Vec<u8> {
    let list = List::parse(&captured[..4096]).unwrap();
    let (datasize, offset) = (list.u64("datasize").unwrap(), list.u64("offset").unwrap());
    let boundary = [1 << 20, 4096].into_iter().map(|step| offset.next_multiple_of(step));
    let Some(boundary) = boundary.into_iter().find(|boundary| boundary + datasize <= size) else {
        return captured;
    };
    let mut pair = Writer::new();
    pair.u64("offset", offset);
    // The value is the last eight bytes of the pair; what pads the name is undefined.
    let head = &pair.as_bytes()[..13];
    let at = captured.windows(head.len()).position(|bytes| bytes == head).unwrap();
    let value = at + pair.len() - 8;
    captured[value..value + 8].copy_from_slice(&boundary.to_le_bytes());
    captured.resize(usize::try_from(boundary).unwrap(), 0);
    captured
}

/// What the original says on no stream, and we say on one.
fn is_warned_about(arguments: &[&str]) -> bool {
    arguments.windows(2).any(|pair| pair == ["-k", "1"])
}

fn assert_created(ran: &Ran, arguments: &[&str], name: &str) {
    let warned = if is_warned_about(arguments) {
        ran.stderr.starts_with("[WARNING] [") && ran.stderr.lines().count() == 1
    } else {
        ran.stderr.is_empty()
    };
    assert!(ran.status == 0 && ran.stdout.is_empty() && warned, "{name}: {ran:?}");
}

#[test]
fn captured_providers_are_created_byte_for_byte() {
    let mut tested = 0;
    for name in names("metadata", "metadata-", ".txt") {
        let description = text("metadata", &format!("{name}.txt"));
        let Some(arguments) = only_command(&description) else { continue };
        if description.contains("loop block devices") {
            continue;
        }
        let node = Node::new("a", &block(&description, "hast.conf:"));
        let size = between(&description, "regular files of ", " ").parse().unwrap();
        let captured = moved(bytes("metadata", &format!("{name}.bin")), size);
        // Whatever was there before: it is gone up to the data, and the data stays.
        node.put("a.img", size, &vec![0xff; captured.len() + 4096]);
        let arguments = words(&arguments);
        assert_created(&node.hastctl(&[&["create"], &arguments[..]].concat()), &arguments, &name);
        let head = node.head("a.img", captured.len() + 4096);
        let (created, data) = head.split_at(captured.len());
        assert!(created == masked(&captured), "{name}");
        assert_eq!(data, [0xff; 4096], "{name}");
        assert_eq!(fs::metadata(node.provider()).unwrap().len(), size, "{name}");
        tested += 1;
    }
    assert_eq!(tested, 18);
}

#[test]
fn freebsds_providers_are_created_byte_for_byte() {
    let mut tested = 0;
    for name in names("freebsd", "metadata-", ".txt") {
        let description = text("freebsd", &format!("{name}.txt"));
        let number = |what: &str| -> u64 {
            let line = description.lines().find(|line| line.contains(what)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        if number("# sectorsize") != 512 {
            continue;
        }
        let arguments = words(between(&description, "hastctl create ", "\n"));
        let size = number("# mediasize in bytes");
        let node = Node::with_provider(size);
        assert_created(&node.hastctl(&[&["create"], &arguments[..]].concat()), &arguments, &name);
        let captured = moved(bytes("freebsd", &format!("{name}.bin")), size);
        assert!(node.head("a.img", captured.len()) == masked(&captured), "{name}");
        tested += 1;
    }
    assert_eq!(tested, 12);
}

/// A loop device, for as long as the value lives.
struct Loop(PathBuf);

impl Loop {
    /// None where devices cannot be made: without root, or in a container.
    fn attach(file: &Path, sectorsize: u32) -> Option<Loop> {
        let sectorsize = sectorsize.to_string();
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", &sectorsize]).arg(file);
        let output = command.output().ok().filter(|output| output.status.success())?;
        Some(Loop(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn large_sectors_are_respected() {
    for (directory, name, size) in
        [("metadata", "metadata-sector4096-created", 16 << 20), ("freebsd", "metadata-64m-s4096", 64 << 20)]
    {
        let description = text(directory, &format!("{name}.txt"));
        let command = only_command_line(&description).unwrap();
        let mut arguments = words(&command);
        let resource = arguments.pop().unwrap();
        let node = Node::with_provider(size);
        let Some(device) = Loop::attach(&node.provider(), 4096) else {
            eprintln!("skipped: no loop device can be attached here");
            return;
        };
        let configuration =
            format!("resource {resource} {{ on a {{ local {} remote none }} }}\n", device.0.display());
        fs::write(node.path("hast.conf"), configuration).unwrap();
        assert_eq!(node.hastctl(&[&["create"], &arguments[..], &[resource]].concat()), DONE);
        let captured = bytes(directory, &format!("{name}.bin"));
        assert_eq!(head_of(&device.0, captured.len()), masked(&captured), "{name}");

        // What somebody has opened exclusively, as a mount does, is left alone.
        let _mounted = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
        let ran = node.hastctl(&["create", resource]);
        assert_eq!(ran.status, 66);
        assert!(ran.stderr.contains("is in use"), "{ran:?}");
    }
}

fn only_command_line(description: &str) -> Option<String> {
    if description.contains("\nSteps:\n") {
        only_command(description)
    } else {
        Some(between(description, "hastctl create ", "\n").to_owned())
    }
}

#[test]
fn a_provider_in_use_is_left_alone() {
    let node = Node::with_provider(1 << 20);
    assert_eq!(node.hastctl(&["create", "test"]), DONE);
    let before = fs::read(node.provider()).unwrap();
    let used = File::open(node.provider()).unwrap();
    used.lock().unwrap();
    let ran = node.hastctl(&["create", "-e", "4k", "test"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (66, ""));
    for part in ["[ERROR] [test] ", "a.img is in use", "flock(2)", "init"] {
        assert!(ran.stderr.contains(part), "{part}: {ran:?}");
    }
    assert_eq!(fs::read(node.provider()).unwrap(), before);
    drop(used);
    assert_eq!(node.hastctl(&["create", "-e", "4k", "test"]), DONE);
}

/// Whether a program can be run here, to make what is to be found.
fn made(program: &str, arguments: &[&str], path: &Path) -> bool {
    let run = Command::new("sh")
        .args(["-c", "PATH=$PATH:/usr/sbin:/sbin exec \"$@\" >/dev/null 2>&1", "sh", program])
        .args(arguments)
        .arg(path)
        .status();
    let made = run.unwrap().success();
    if !made {
        eprintln!("skipped: no {program} here");
    }
    made
}

#[test]
fn what_a_provider_holds_is_named_and_left_alone() {
    // A header of LUKS is known by its first bytes and its version.
    let luks = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"LUKS\xba\xbe\0\x01", 0).unwrap();
        made("wipefs", &["--no-act"], path)
    };
    let boot = |path: &Path| made("sfdisk", &["--quiet", "--label", "gpt"], path);
    let ext4 = |path: &Path| made("mkfs.ext4", &["-q", "-F"], path);
    let swap = |path: &Path| made("mkswap", &[], path);
    let kinds = ["ext4", "swap", "gpt", "crypto_LUKS"];
    let makers: [&dyn Fn(&Path) -> bool; 4] = [&ext4, &swap, &boot, &luks];
    for (kind, make) in kinds.into_iter().zip(makers) {
        let node = Node::with_provider(64 << 20);
        if !make(&node.provider()) {
            continue;
        }
        let before = node.head("a.img", 1 << 20);
        let ran = node.hastctl(&["create", "test"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (65, ""), "{kind}: {ran:?}");
        let path = node.provider().display().to_string();
        for part in [kind, "[ERROR] [test] ", path.as_str(), "hastctl create -f"] {
            assert!(ran.stderr.contains(part), "{part}: {ran:?}");
        }
        assert!(node.head("a.img", 1 << 20) == before, "{kind}");
        assert_eq!(node.hastctl(&["create", "-f", "test"]), DONE);
        assert_eq!(node.hastctl(&["dump", "test"]).status, 0);
    }
}

#[test]
fn the_provider_of_another_resource_is_left_alone() {
    let node = Node::new(
        "a",
        "resource test { on a { local /hast/a.img remote none } }\n\
         resource other { on a { local /hast/b.img remote none } }\n",
    );
    node.put("b.img", 1 << 20, &[]);
    assert_eq!(node.hastctl(&["create", "other"]), DONE);
    fs::rename(node.path("b.img"), node.provider()).unwrap();
    let before = fs::read(node.provider()).unwrap();
    let ran = node.hastctl(&["create", "test"]);
    assert_eq!(ran.status, 65, "{ran:?}");
    assert!(ran.stderr.contains("metadata of the resource other"), "{ran:?}");
    assert_eq!(fs::read(node.provider()).unwrap(), before);
    assert_eq!(node.hastctl(&["create", "-f", "test"]), DONE);
    // The resource's own provider is created again without a question: a split-brain is resolved that way.
    assert_eq!(node.hastctl(&["create", "test"]), DONE);
}

#[test]
fn without_anybody_who_knows_only_an_empty_provider_is_taken() {
    if cfg!(target_os = "freebsd") {
        return;
    }
    // In a mount namespace of its own the programs are hidden.
    let node = Node::with_provider(1 << 20);
    let create = || -> Ran {
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs none /usr/sbin && mount -t tmpfs none /sbin && exec \"$@\"";
        let hastctl = node.command(&["create", "test"]);
        command.args(["-rm", "sh", "-c", script, "sh"]).arg(hastctl.get_program()).args(hastctl.get_args());
        command.output().unwrap().into()
    };
    let first = create();
    if first != DONE {
        eprintln!("skipped: programs cannot be hidden here: {first:?}");
        return;
    }
    node.put("a.img", 1 << 20, &[0, 0, 7]);
    let ran = create();
    assert_eq!(ran.status, 65, "{ran:?}");
    assert!(ran.stderr.contains("is not empty, and wipefs(8)"), "{ran:?}");
    assert_eq!(node.head("a.img", 3), [0, 0, 7]);
}

/// Two nodes of which neither can be an original begin their data areas at a boundary.
#[test]
fn the_data_area_is_aligned_where_that_is_safe() {
    let offset = |options: &[&str], statement: &str, provider: u64| {
        let node = Node::new(
            "a",
            &format!("{statement}\nresource test {{ on a {{ local /hast/a.img remote none }} }}\n"),
        );
        node.put("a.img", provider, &[]);
        assert_eq!(node.hastctl(&[&["create"], options, &["test"]].concat()), DONE);
        let text = node.hastctl(&["dump", "test"]).stdout;
        let number = |name: &str| -> u64 {
            between(&text, &format!("{name}: "), "\n").split(' ').next().unwrap().parse().unwrap()
        };
        (number("localoff"), number("datasize"))
    };
    let size = 64 << 20;
    assert_eq!(offset(&[], "", size), (4608, size - 4608));
    assert_eq!(offset(&[], "#% device none", size), (4608, size - 4608));
    assert_eq!(offset(&[], "device none", size), (8192, size - 8192));
    assert_eq!(offset(&["-a"], "", size), (8192, size - 8192));
    let part = (1 << 20).to_string();
    assert_eq!(offset(&["-m", &part], "", size), (1 << 20, (1 << 20) - 4608));
}

#[test]
fn what_is_refused_leaves_the_provider_untouched() {
    let gigantic = (1_u64 << 31).to_string();
    let mut table: Vec<(u64, Vec<&str>, String)> = vec![
        (1 << 20, vec!["-m", "1048577"], "Provided mediasize is larger than provider PATH size.".to_owned()),
        (1 << 20, vec!["-e", "256"], "Extent size (256) is less than sector size (512).".to_owned()),
        (1 << 20, vec!["-e", "1000"], "Extent size (1000) is not multiple of sector size (512).".to_owned()),
        (1 << 20, vec!["-e", "1536"], "Extent size (1536) is not a power of two up to ".to_owned()),
        (1 << 20, vec!["-e", "2g"], "Extent size (2147483648) is not a power of two up to ".to_owned()),
        (1 << 20, vec!["-e", "8g"], "Extent size (8589934592) is not a power of two up to ".to_owned()),
        (1 << 20, vec!["-e", "8589934593"], "Extent size (8589934593) is not multiple of ".to_owned()),
        (
            1 << 20,
            vec!["-k", &gigantic],
            "Unable to initialize provider PATH: keepdirty 2147483648 ".to_owned(),
        ),
        (1 << 20, vec!["-m", "5119"], "Unable to initialize provider PATH: ".to_owned()),
    ];
    for size in [0, 1, 511, 4096, 4608, 5119] {
        table.push((size, Vec::new(), "Unable to initialize provider PATH: ".to_owned()));
    }
    for (size, options, message) in table {
        let node = Node::with_provider(size);
        let path = node.provider().display().to_string();
        let ran = node.hastctl(&[&["create"], &options[..], &["test"]].concat());
        assert_eq!((ran.status, ran.stdout.as_str()), (65, ""), "{size} {options:?}: {ran:?}");
        let last = ran.stderr.lines().last().unwrap();
        let expected = format!("[ERROR] [test] {}", message.replace("PATH", &path));
        assert!(last.starts_with(&expected) && last.ends_with('.'), "{size} {options:?}: {ran:?}");
        assert!(fs::read(node.provider()).unwrap().iter().all(|byte| *byte == 0), "{size} {options:?}");
    }
}

#[test]
fn a_provider_that_cannot_be_opened_is_66() {
    let node = Node::with_provider(1 << 20);
    fs::remove_file(node.provider()).unwrap();
    let path = node.provider().display().to_string();
    let stderr = format!("[ERROR] [test] Unable to open {path}: No such file or directory.\n");
    assert_eq!(node.hastctl(&["create", "test"]), Ran { status: 66, stdout: String::new(), stderr });
    fs::create_dir(node.provider()).unwrap();
    assert_eq!(node.hastctl(&["create", "test"]).status, 66);
}

#[test]
fn an_odd_length_is_rounded_down_to_sectors() {
    let even = Node::with_provider(1 << 20);
    assert_eq!(even.hastctl(&["create", "test"]), DONE);
    let odd = Node::with_provider((1 << 20) + 511);
    let ran = odd.hastctl(&["create", "test"]);
    assert_eq!(ran.status, 0);
    assert!(
        ran.stderr.starts_with("[WARNING] [test] 1049087 bytes ") && ran.stderr.contains("1048576"),
        "{ran:?}"
    );
    assert_eq!(odd.head("a.img", 8192), even.head("a.img", 8192));
    let asked = Node::with_provider(2 << 20);
    assert_eq!(asked.hastctl(&["create", "-m", "1049087", "test"]).status, 0);
    let sizes = |node: &Node| between(&node.hastctl(&["dump"]).stdout, "datasize: ", "\n").to_owned();
    assert_eq!(sizes(&asked), sizes(&even));
}

#[test]
fn options_for_zero_mean_the_defaults() {
    let plain = Node::with_provider(64 << 20);
    assert_eq!(plain.hastctl(&["create", "test"]), DONE);
    let zero = Node::with_provider(64 << 20);
    assert_eq!(zero.hastctl(&["create", "-e", "0", "-k", "0", "-m", "0", "test"]), DONE);
    assert_eq!(plain.head("a.img", 8192), zero.head("a.img", 8192));
}

#[test]
fn several_resources_are_created_and_the_first_error_counts() {
    let node = Node::new(
        "a",
        "resource one { on a { local /hast/1.img remote none } }\n\
         resource two { on a { local /hast/2.img remote none } }\n",
    );
    node.put("1.img", 1 << 20, &[]);
    // `all` is no keyword here.
    let ran = node.hastctl(&["create", "all"]);
    let stderr = "[ERROR] Unknown resource all.\n[WARNING] The configuration has one, two.\n".to_owned();
    assert_eq!(ran, Ran { status: 65, stdout: String::new(), stderr });
    let ran = node.hastctl(&["create", "two", "nosuch", "one"]);
    assert_eq!(ran.status, 66);
    assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("[ERROR] ")).count(), 2);
    assert_eq!(node.hastctl(&["dump", "one"]).status, 0);
    let ran = node.hastctl(&["create", "nosuch", "two"]);
    assert_eq!(ran.status, 65);
}

#[test]
fn a_provider_that_cannot_be_written_is_74() {
    let node = Node::with_provider(1 << 30);
    let create = node.command(&["create", "-e", "512", "test"]);
    assert_eq!(node.hastctl(&["create", "-e", "512", "test"]), DONE);
    assert_eq!(node.hastctl(&["dump"]).status, 0);
    // Writing behind a limit fails where writing to a bad disk would: the metadata fits, the map does not.
    let script = "ulimit -f 64; trap '' XFSZ; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(create.get_program())
        .args(create.get_args())
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!((ran.status, ran.stdout.as_str()), (74, ""));
    let path = node.provider().display().to_string();
    assert!(
        ran.stderr.starts_with(&format!("[ERROR] [test] Unable to store initial bitmap on {path}: ")),
        "{ran:?}"
    );
    // The old block, which describes a map that is gone, is gone too.
    assert_eq!(node.hastctl(&["dump"]).status, 255);
}
