//! Writes the seeds of the corpora: what was captured from the original, cut into small inputs, and short scripts
//! for the targets that no capture fits. `cargo run -p hast-fuzz --example seeds`; the same files each time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use hast_format::extension::{Extension, Mark, Run};
use hast_format::metadata::{Metadata, Role};
use hast_format::nv::List;
use hast_fuzz::messages::feed;
use hast_net::buffer::Pool;
use hast_net::frame::{self, Frame, Limits, Receiver};

/// Longest seed in bytes.
const LONGEST: usize = 4800;

fn main() {
    frames();
    metadata();
    control();
    configurations();
    compressed();
    clients();
    sessions();
}

/// From every captured stream the frames of each kind: as frames, as lists, and where they belong to the handshake
/// or to a session, there.
fn frames() {
    let mut seen = BTreeSet::new();
    for path in captured("wire", &[".bin", ".bin.xz"]) {
        let (frames, _) = feed(&mut Receiver::new(Limits::PEER, Pool::new()), &read(&path), usize::MAX);
        let from_primary = path.to_str().unwrap().contains("c0.p2s");
        for frame in &frames {
            let list = frame.list().unwrap();
            let names: Vec<_> = list.pairs().map(|pair| (pair.name.to_vec(), pair.kind.code())).collect();
            let bytes = bytes(frame);
            if bytes.len() > LONGEST || !seen.insert((names, list.u8("cmd"), list.i16("error"))) {
                continue;
            }
            let name = name(&list);
            save("proto_decode", &name, &[&[0x40], &bytes[..]].concat());
            save("nv_decode", &name, &frame.nv);
            if ["resource", "token", "datasize", "errmsg"].iter().any(|pair| list.contains(pair)) {
                save("handshake", &name, &[&[0], &bytes[..]].concat());
            } else if from_primary {
                save("secondary_session", &name, &[SECONDARY, &raw(&bytes), &[12]].concat());
            }
        }
        let stream: Vec<u8> = frames.iter().flat_map(bytes).take(2000).collect();
        if seen.insert((Vec::new(), None, i16::try_from(stream.len()).ok())) {
            save("proto_decode", &format!("stream-{}", stream.len()), &[&[0x0e], &stream[..]].concat());
        }
    }
    for path in captured("codec", &[".nv.bin"]) {
        let file = path.file_name().unwrap().to_str().unwrap();
        let (what, stage) = file.strip_prefix("codec-").unwrap().split_once('.').unwrap();
        let packed = match stage.split('-').next().unwrap() {
            "none" => "in",
            "hole" => "hole.payload",
            _ => "lzf.payload",
        };
        let Ok(payload) = fs::read(path.with_file_name(format!("codec-{what}.{packed}.bin"))) else {
            continue;
        };
        let frame = [frame::encode(2, &read(&path)).unwrap(), payload].concat();
        if frame.len() < 1200 {
            save("proto_decode", &format!("codec-{}", stem(&path)), &[&[0xfe], &frame[..]].concat());
        }
    }
}

fn metadata() {
    for path in captured("metadata", &[".bin"]).into_iter().chain(captured("freebsd", &[".bin"])) {
        let name = stem(&path);
        let wanted = ["create-default", "life-2", "life-3", "name-001", "name-254", "splitbrain", "2t", "8k"];
        if !wanted.iter().any(|part| name.contains(part)) {
            continue;
        }
        let block = &read(&path)[..4096];
        let list = List::parse(block).unwrap().as_bytes();
        save("metadata_decode", &name, &[&[0], list].concat());
        save("nv_decode", &name, list);
    }
    let mut ours = Metadata {
        resource: "disk0".into(),
        datasize: 64 << 20,
        extentsize: 2 << 20,
        keepdirty: 64,
        localoff: 8192,
        resuid: 0x0123_4567_89ab_cdef,
        localcnt: 3,
        remotecnt: 2,
        prevrole: Role::Primary,
        extension: Extension { generation: 5, boot: [1; 16], peer_boot: [2; 16], ..Extension::default() },
    };
    save("metadata_decode", "area", &[&[0], &ours.encode()[..]].concat());
    ours.extension.mark = Some(Mark { since: 1_800_000_000, by: "10.0.0.1".into() });
    ours.extension.stale = vec![Run { first: 1, count: 2 }, Run { first: 30, count: 9 }];
    (ours.extension.target, ours.extension.full_sync_owed) = (true, true);
    save("metadata_decode", "area-marked", &[&[1], &ours.encode()[..]].concat());
    for number in 0..6 {
        save("metadata_decode", &format!("script-{number}"), &[&[2], &noise(number, 160)[..]].concat());
    }
}

fn control() {
    for path in captured("control", &[".c2d.bin", ".d2c.bin"]) {
        let bytes = read(&path);
        if bytes.len() < 1000 {
            save("control_decode", &stem(&path), &[&[0x1e], &bytes[..]].concat());
        }
    }
    for number in 0..4 {
        save("control_decode", &format!("script-{number}"), &[&[1], &noise(number, 300)[..]].concat());
    }
}

fn configurations() {
    let texts = [
        ("least", "resource r { local /d on a { remote b } on b { remote a } }\n"),
        (
            "global",
            "# comment\ncontrol uds:///var/run/hastctl\npidfile /p\nlisten 0.0.0.0\nlisten tcp6://[::1]:8458\n\
             replication fullsync\nchecksum crc32\ncompression lzf\ntimeout 20\nexec /sbin/h\nmetaflush off\n",
        ),
        (
            "nodes",
            "on a { control tcp4://127.0.0.1:7 listen tcp://h pidfile \"/a b\" }\non b { pidfile /q }\nresource s {\n\
             name n\nlocal /d\non a.example.org { remote tcp4://10.0.0.2:1 source tcp4://10.0.0.1 }\n\
             on b { name m local /e remote none metaflush on }\non 12345678-1234-1234-1234-123456789abc { remote a }\n}\n",
        ),
        (
            "extension",
            "#% nbd /var/run/nbd\non a {\n#% nbd /x\n}\nresource r { local /d on a { remote b } }\n",
        ),
        ("unknown word", "resource r { loc /d }\n"),
        ("unclosed", "resource \"r\" { on a { remote b\n"),
        ("number", "timeout 99999999999\n"),
        ("strange", "resource r\u{e9} { local \u{0}/d \t on a { remote [::1 } }\r\n"),
        ("twice", "resource r { local /d on a { remote b } }\nresource r { local /d on a { remote b } }\n"),
    ];
    for (name, text) in texts {
        save("conf_parse", &name.replace(' ', "-"), text.as_bytes());
    }
    for path in [root().join("docs/man/hast.conf.5")] {
        let page = fs::read_to_string(path).unwrap();
        for (number, display) in page.split("\n.Bd ").skip(1).enumerate() {
            let text = display.split_once('\n').unwrap().1.split("\n.Ed").next().unwrap();
            save("conf_parse", &format!("manual-{number}"), text.as_bytes());
        }
    }
}

fn compressed() {
    for path in captured("codec", &[".lzf.payload.bin"]) {
        let bytes = read(&path);
        save("lzf_decode", &stem(&path), &bytes[..bytes.len().min(2000)]);
    }
    save("lzf_decode", "overlap", &[30, 0, 0, 0, 0, b'x', 7 << 5, 20, 0]);
    save("lzf_decode", "literals", &[3, 0, 0, 0, 2, b'a', b'b', b'c']);
}

fn clients() {
    let option = |number: u32, data: &[u8]| {
        [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let request = |command: u16, flags: u16, offset: u64, length: u32| {
        let head =
            [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        [&head[..], &[9; 8], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    let go = option(7, &[&[0, 0, 0, 6], &b"shared"[..], &[0, 1, 0, 3]].concat());
    let contexts = [&[0, 0, 0, 6], &b"shared"[..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
    let structured = [option(8, &[]), option(10, &contexts), go.clone()].concat();
    let flags = [0, 0, 0, 3];
    let write = [request(1, 1, 512, 1024), vec![5; 1024]].concat();
    let rest =
        [request(0, 0, 0, 4096), request(3, 0, 0, 0), request(7, 8, 0, 1024), request(2, 0, 0, 0)].concat();
    let zero = [request(6, 2, 0, 4096), request(4, 0, 0, 512), request(5, 0, 0, 512)].concat();
    let streams = [
        ("list", [&flags[..], &option(3, &[]), &option(2, &[])].concat()),
        ("old-export", [&flags[..], &option(1, b"shared"), &request(0, 0, 0, 512)].concat()),
        ("go", [&flags[..], &go, &write, &rest].concat()),
        ("structured", [&flags[..], &structured, &rest, &zero].concat()),
        ("zeroes", [&flags[..], &go, &zero].concat()),
        (
            "refused",
            [&flags[..], &go, &request(1, 0, 1 << 40, 512), &[1; 512], &request(9, 0, 0, 0)].concat(),
        ),
        ("unknown-option", [&flags[..], &option(99, b"what"), &go].concat()),
    ];
    for (name, stream) in streams {
        save("nbd_session", name, &[&[0, 12, 3], &stream[..]].concat());
    }
    for number in 0..5 {
        save("nbd_session", &format!("script-{number}"), &[&[1, 200, 4], &noise(number, 400)[..]].concat());
    }
}

/// A secondary's past of zeros on 64 sectors, which takes a new id over; its disk has answered.
const SECONDARY: &[u8] = &[0, 0, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12];
/// A primary's past of zeros on 64 sectors, connected up to the second step.
const PRIMARY: &[u8] = &[
    0, 0, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 18, 5, 0, 7, 0,
    0, 0, 0, 0, 7, 1, 1, 5, 0, 18,
];

/// Scripts for the engines: what one finds from noise, and some of what a pair really does.
fn sessions() {
    let requests =
        [&[0, 0, 1, 0, 7][..], &[0, 2, 9], &[0, 0, 2, 0, 7, 4], &[18], &[0, 0, 0, 0, 0, 7], &[18]].concat();
    save("primary_session", "alone", &[&PRIMARY[..30], &[5, 7], &requests, &[18, 21]].concat());
    save("primary_session", "connected", &[PRIMARY, &[7, 0, 0, 0, 0, 1, 1, 1], &requests].concat());
    for number in 0..6 {
        save("primary_session", &format!("script-{number}"), &[PRIMARY, &noise(number, 400)].concat());
        save("primary_session", &format!("noise-{number}"), &noise(number + 10, 400));
        save("secondary_session", &format!("script-{number}"), &[SECONDARY, &noise(number, 400)].concat());
        save("secondary_session", &format!("noise-{number}"), &noise(number + 10, 400));
        save("handshake", &format!("admission-{number}"), &[&[1], &noise(number, 80)[..]].concat());
        save("handshake", &format!("pair-{number}"), &[&[2], &noise(number, 80)[..]].concat());
    }
}

/// A step of a session: these bytes arrive.
fn raw(bytes: &[u8]) -> Vec<u8> {
    [&[7][..], &u16::try_from(bytes.len()).unwrap().to_le_bytes(), bytes, &[255]].concat()
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame::encode(frame.version, &frame.nv).unwrap();
    bytes.extend_from_slice(frame.payload.as_deref().unwrap_or_default());
    bytes
}

/// A frame's kind and its pairs as a file name.
fn name(list: &List<'_>) -> String {
    let pairs: Vec<_> = list.pairs().map(|pair| String::from_utf8(pair.name.to_vec()).unwrap()).collect();
    let number = |value: Option<String>| value.map(|value| format!("{value}-")).unwrap_or_default();
    let command = number(list.u8("cmd").map(|command| format!("cmd{command}")));
    let error = number(list.i16("error").map(|error| format!("error{error}")));
    format!("{command}{error}{}", pairs.join("-"))
}

/// The same bytes for the same number, without a pattern.
fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    next.take(length).collect()
}

fn save(target: &str, name: &str, bytes: &[u8]) {
    assert!(bytes.len() <= LONGEST + 64, "{target}/{name} has {} bytes", bytes.len());
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(name), bytes).unwrap();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files in a directory of the vectors, sorted.
fn captured(directory: &str, endings: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tests/vectors").join(directory)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)));
    paths.sort();
    paths
}

/// A file's name without what all of them share.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let name = name.strip_suffix(".bin").unwrap();
    ["codec-", "metadata-", "control-"]
        .iter()
        .fold(name, |name, prefix| name.trim_start_matches(prefix))
        .to_owned()
}

fn read(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    if path.extension().is_none_or(|extension| extension != "xz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    lzma_rust2::XzReader::new(bytes.as_slice(), true).read_to_end(&mut unpacked).unwrap();
    unpacked
}
