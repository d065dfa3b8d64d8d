//! hastctl's exit codes and messages, as scripts know them.

use std::os::unix::net::UnixListener;

use hast_format::nv::Writer;
use hast_tests::peer::Packet;
use hast_tests::{Outcome, Pair, Run, Setup, disk};

#[test]
fn without_a_daemon() -> Outcome {
    let pair = Pair::blank(Setup::default())?;
    let code = |arguments: &[&str]| pair.a.hastctl(arguments).map(|run| run.code);
    // 64: usage.
    assert_eq!(code(&["frobnicate"])?, 64);
    assert_eq!(code(&["role", "tertiary", "disk0"])?, 64);
    assert_eq!(code(&["role", "primary"])?, 64);
    assert_eq!(code(&["create"])?, 64);
    let hastctl = hast_tests::programs::Programs::find()?.hastctl;
    assert_eq!(Run::of(&mut std::process::Command::new(&hastctl))?.code, 64);
    for (option, what) in [("-e", "extentsize"), ("-k", "keepdirty"), ("-m", "mediasize")] {
        let bad = pair.a.hastctl(&["create", option, "4x", "disk0"])?;
        assert_eq!(bad.code, 64);
        assert!(bad.stderr.contains(&format!("hastctl: Invalid {what}")), "{}", bad.stderr);
    }
    // 65: bad data, or no such resource.
    assert_eq!(code(&["create", "nosuch"])?, 65);
    assert_eq!(code(&["dump", "nosuch"])?, 65);
    assert_eq!(code(&["create", "-m", "1g", "disk0"])?, 65, "larger than the provider");
    assert_eq!(code(&["create", "-e", "100", "disk0"])?, 65, "no multiple of the sector");
    disk::make(&pair.a.provider("disk0"), 4096)?;
    assert_eq!(code(&["create", "disk0"])?, 65, "no room for data");
    // 66: the provider cannot be opened.
    std::fs::remove_file(pair.a.provider("disk0"))?;
    assert_eq!(code(&["create", "disk0"])?, 66);
    assert_eq!(code(&["dump", "disk0"])?, 255);
    // A provider without metadata.
    disk::make(&pair.a.provider("disk0"), 1 << 20)?;
    assert_eq!(code(&["dump", "disk0"])?, 255);
    assert_eq!(code(&["create", "disk0"])?, 0);
    assert_eq!(code(&["dump", "disk0"])?, 0);
    // 71: nobody listens on the control socket.
    assert_eq!(code(&["status"])?, 71);
    assert_eq!(code(&["role", "primary", "disk0"])?, 71);
    // 72 and 78: the configuration.
    std::fs::write(pair.conf_path(), "resource {\n")?;
    assert_eq!(code(&["status"])?, 78);
    std::fs::remove_file(pair.conf_path())?;
    assert_eq!(code(&["status"])?, 72);
    assert_eq!(code(&["create", "disk0"])?, 72);
    pair.finish()
}

#[test]
fn with_a_daemon() -> Outcome {
    let pair = Pair::started(Setup::default())?;
    let unknown = pair.a.hastctl(&["status", "nosuch"])?;
    assert_eq!(unknown.code, 1);
    assert_eq!(unknown.stdout, "Name\tStatus\t Role\t\tComponents\nnosuch\tERR1\n");
    let unknown = pair.a.hastctl(&["list", "disk0", "nosuch"])?;
    assert_eq!(unknown.code, 1);
    assert!(unknown.stdout.starts_with("disk0:\n  role: init\n"), "{}", unknown.stdout);
    assert!(unknown.stdout.ends_with("nosuch:\n  error: 1\n"), "{}", unknown.stdout);
    let unknown = pair.a.hastctl(&["role", "primary", "nosuch"])?;
    assert_eq!(unknown.code, 1);
    let words = unknown.stderr.strip_prefix("[WARNING] [nosuch] Received error 1 from hastd.\n");
    assert!(words.is_some_and(|words| words.contains("does not know this resource")), "{}", unknown.stderr);
    // A provider that the daemon holds cannot be created over.
    pair.a.role("primary", "disk0")?;
    // The device is there when the primary has written what it writes at its start.
    pair.a.client("disk0")?.read(0, 512)?;
    let before = disk::metadata(&pair.a.provider("disk0"))?;
    assert_ne!(pair.a.hastctl(&["create", "disk0"])?.code, 0);
    assert_eq!(disk::metadata(&pair.a.provider("disk0"))?, before);
    pair.finish()
}

/// What a daemon that answers badly makes of the exit code.
#[test]
fn with_a_daemon_that_misbehaves() -> Outcome {
    let pair = Pair::blank(Setup::default())?;
    let listener = UnixListener::bind(pair.a.control())?;
    let answer = |reply: Option<Packet>| {
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| -> Outcome {
                let (mut stream, _) = listener.accept()?;
                Packet::read(&mut stream)?;
                if let Some(reply) = reply {
                    std::io::Write::write_all(&mut stream, &reply.bytes())?;
                }
                Ok(())
            });
            let run = pair.a.hastctl(&["status"]);
            daemon.join().expect("the false daemon does not panic")?;
            run
        })
    };
    assert_eq!(answer(None)?.code, 69, "closed without an answer");
    let mut error = Writer::new();
    error.i16("error", 3);
    let global = answer(Some(Packet::new(2, &error)))?;
    assert_eq!(global.code, 70);
    assert!(global.stderr.contains("Error 3 received from hastd."), "{}", global.stderr);
    let empty = answer(Some(Packet::new(2, &Writer::new())))?;
    assert_eq!((empty.code, empty.stdout.as_str()), (0, ""), "no resources at all");
    pair.finish()
}

/// `status` and `list` to the letter, for a pair at rest.
#[test]
fn status_and_list_are_exact() -> Outcome {
    let pair = Pair::up(Setup::with("checksum crc32"))?;
    pair.a.wait_at_rest("disk0")?;
    let (local, remote) = (pair.a.provider("disk0"), pair.link.toward_b().conf());
    let source = pair.a.value("disk0", "sourceaddr")?.unwrap_or_default();
    assert_eq!(
        pair.a.ctl(&["status"])?,
        format!(
            "Name\tStatus\t Role\t\tComponents\ndisk0\tcomplete primary        {}\t{remote}\n",
            local.display()
        )
    );
    let worker = pair.a.wait_worker("disk0")?;
    let expected = format!(
        "disk0:\n  role: primary\n  provname: disk0\n  localpath: {}\n  extentsize: 65536 (64KB)\n  keepdirty: 64\n  \
         remoteaddr: {remote}\n  sourceaddr: {source}\n  replication: memsync\n  status: complete\n  workerpid: {worker}\n  \
         dirty: 0 (0B)\n  statistics:\n    reads: 0\n    writes: 0\n    deletes: 0\n    flushes: 0\n    \
         activemap updates: 0\n    local errors: read: 0, write: 0, delete: 0, flush: 0\n    \
         queues: local: 0, send: 0, recv: 0, done: 0, idle: 255\n",
        local.display()
    );
    assert_eq!(pair.a.ctl(&["list", "disk0"])?, expected);
    let b = pair.b.ctl(&["status", "disk0"])?;
    let (local, remote) = (pair.b.provider("disk0"), pair.link.toward_a().conf());
    assert_eq!(
        b,
        format!(
            "Name\tStatus\t Role\t\tComponents\ndisk0\tcomplete secondary      {}\t{remote}\n",
            local.display()
        )
    );
    pair.finish()
}
