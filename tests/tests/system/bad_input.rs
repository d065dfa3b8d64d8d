//! Garbage on every socket: the daemon stays, and other resources do not notice.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use hast_format::nv::Writer;
use hast_tests::link::connect_from;
use hast_tests::peer::{Packet, Wire};
use hast_tests::{Failure, Loopback, Node, Outcome, Pair, Resource, SHORT, Setup, disk, wait_until};

use crate::volume::Volume;

/// A pair whose disk0 works and whose disk1 waits as a secondary on both nodes.
fn pair() -> Result<Pair, Failure> {
    let resources = vec![Resource::named("disk0"), Resource::named("disk1")];
    let pair = Pair::started(Setup { resources, ..Setup::default() })?;
    pair.b.role("secondary", "disk0")?;
    pair.b.role("secondary", "disk1")?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    Ok(pair)
}

/// disk0 works as before: the same workers, a write that both nodes have.
fn unaffected(pair: &Pair, volume: &mut Volume, seed: u64) -> Outcome {
    assert_eq!(pair.a.status("disk0")?, "complete");
    volume.scribble(seed, (seed as usize % 32) * 8192, 8192)?;
    volume.flush()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")
}

/// A list with one pair, to be bent.
fn resource(name: &str) -> Writer {
    let mut nv = Writer::new();
    nv.str("resource", name);
    nv
}

/// Frames that are wrong in many ways.
fn bad_frames() -> Vec<Vec<u8>> {
    let good = Packet::new(1, &resource("disk1")).bytes();
    let mut frames = vec![
        Vec::new(),
        vec![2],
        vec![0xff; 4096],
        vec![0; 4096],
        // An empty list (X4).
        vec![2, 0, 0, 0, 0],
        // Headers that claim far too much (X1).
        vec![2, 0xff, 0xff, 0xff, 0xff],
        vec![2, 0, 0, 0x10, 0x01],
        // An unknown version.
        vec![3, 0, 0, 0, 0],
        // Cut short.
        good[..good.len() - 3].to_vec(),
        // Rubbish where the list should be.
        [&[2, 64, 0, 0, 0][..], &disk::pattern(5, 64)].concat(),
        // A scalar that claims to be as long as memory allows (X9).
        [&[2, 22, 0, 0, 0][..], &[2, 5, 0xfb, 0xff, 0xff, 0xff], b"cmd\0\0\0\0\0", &[1; 8]].concat(),
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
    ];
    // Every single byte of a good frame changed.
    for at in 0..good.len() {
        let mut bent = good.clone();
        bent[at] ^= 0x55;
        frames.push(bent);
    }
    // A payload that nobody expects here.
    let mut with_size = resource("disk1");
    frames.push(Packet::with_payload(1, &mut with_size, &[7; 512]).bytes());
    let mut huge = resource("disk1");
    huge.u32("size", u32::MAX);
    frames.push(Packet::new(1, &huge).bytes());
    // Tokens that were never given out (X8).
    for token in [&[0; 16][..], &[0x78; 16], &[1; 3], &[9; 64]] {
        let mut second = resource("disk1");
        second.u8_array("token", token).u64("resuid", 1).u64("localcnt", 0).u64("remotecnt", 0);
        frames.push(Packet::new(2, &second).bytes());
    }
    frames
}

/// Resident memory of a process in bytes.
fn resident(node: &Node) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", node.pid()?))?;
    let pages: u64 = text.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096)
}

#[test]
fn from_the_peer_s_address() -> Outcome {
    let mut pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let workers = (pair.a.worker("disk0")?, pair.b.worker("disk0")?);
    let before = resident(&pair.b)?;
    for (n, bytes) in bad_frames().into_iter().enumerate() {
        let mut wire = Wire::connect(pair.link.toward_b().hast())?;
        wire.send_bytes(&bytes)?;
        // The other side may have closed already.
        let _ = wire.end();
        // Whatever the answer is, it is well formed, and then the connection ends.
        wire.receive_to_end().or_else(
            |failure| {
                if is_reset(&failure) { Ok(Vec::new()) } else { Err(failure) }
            },
        )?;
        if n % 16 == 0 {
            unaffected(&pair, &mut volume, n as u64)?;
        }
    }
    unaffected(&pair, &mut volume, 99)?;
    assert!(pair.b.is_running()?);
    assert_eq!((pair.a.worker("disk0")?, pair.b.worker("disk0")?), workers);
    assert_eq!(pair.b.value("disk1", "role")?.as_deref(), Some("secondary"));
    let grown = resident(&pair.b)?.saturating_sub(before);
    assert!(grown < 32 << 20, "hastd grew by {grown} bytes");
    pair.finish()
}

fn is_reset(failure: &Failure) -> bool {
    failure.to_string().contains("reset") || failure.to_string().contains("roken pipe")
}

#[test]
fn on_the_control_socket() -> Outcome {
    let mut pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let before = resident(&pair.a)?;
    for (n, bytes) in bad_frames().into_iter().enumerate() {
        let mut stream = UnixStream::connect(pair.a.control())?;
        stream.set_read_timeout(Some(SHORT))?;
        // The daemon may close before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error.into()),
        }
        if n % 16 == 0 {
            unaffected(&pair, &mut volume, n as u64)?;
        }
    }
    assert!(pair.a.is_running()?);
    let grown = resident(&pair.a)?.saturating_sub(before);
    assert!(grown < 64 << 20, "hastd grew by {grown} bytes");
    pair.finish()
}

#[test]
fn on_the_nbd_socket() -> Outcome {
    let pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let worker = pair.a.worker("disk0")?;
    let option = |code: u32, data: &[u8]| {
        let mut bytes = b"\0\0\0\x03IHAVEOPT".to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let mut scripts = vec![
        Vec::new(),
        vec![0; 64],
        vec![0xff; 65536],
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff".to_vec(),
        option(7, &[0xff; 12]),
        option(99, b"whatever"),
        option(7, &[0, 0, 0, 1, b'x', 0, 0]),
        disk::pattern(3, 8192),
    ];
    // Into the transmission phase by EXPORT_NAME, and rubbish there.
    let mut transmission = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0".to_vec();
    transmission.extend(disk::pattern(4, 4096));
    scripts.push(transmission);
    for script in scripts {
        let mut stream = UnixStream::connect(pair.a.socket("disk0"))?;
        stream.set_read_timeout(Some(SHORT))?;
        let _ = stream.write_all(&script);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"NBDMAGICIHAVEOPT"));
        unaffected(&pair, &mut volume, 1)?;
    }
    // Requests beyond the end, of length zero and of no known kind are errors, not ends.
    let size = volume.client.size();
    assert!(volume.client.read(size, 512).is_err());
    assert!(volume.client.read(u64::MAX - 511, 512).is_err());
    assert!(volume.client.write(size - 512, &[1; 1024]).is_err());
    assert!(volume.client.write(7, &[1; 512]).is_err(), "not aligned to the sector");
    volume.verify()?;
    assert_eq!(pair.a.worker("disk0")?, worker, "the worker has survived all of it");
    pair.finish()
}

/// Clients and peers that connect and say nothing block nobody (T6).
#[test]
fn silent_connections_block_nobody() -> Outcome {
    let pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let mut silent: Vec<TcpStream> = Vec::new();
    let mut clients: Vec<UnixStream> = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(pair.link.toward_b().hast())?);
        clients.push(UnixStream::connect(pair.b.control())?);
        clients.push(UnixStream::connect(pair.a.socket("disk0"))?);
    }
    // Some get stuck in the middle of a frame.
    for stream in &mut clients {
        let _ = stream.write_all(&[2, 64, 0]);
    }
    unaffected(&pair, &mut volume, 3)?;
    assert_eq!(pair.b.ctl(&["status"])?.lines().count(), 3);
    pair.b.role("init", "disk1")?;
    pair.b.role("secondary", "disk1")?;
    drop((silent, clients));
    pair.finish()
}

/// Addresses that are no resource's `remote` are turned away before a byte is read.
#[test]
fn strangers_are_turned_away() -> Outcome {
    let pair = pair()?;
    let stranger = Loopback::reserve()?;
    let mut wire = Wire::over(connect_from(stranger.ip(), pair.b_listens())?)?;
    // It is closed without our sending anything.
    match wire.receive_to_end() {
        Ok(packets) => assert!(packets.is_empty()),
        Err(failure) => assert!(is_reset(&failure), "{failure}"),
    }
    pair.b.wait_log(&stranger.ip().to_string())?;
    pair.finish()
}

/// A peer that is let in and then sends garbage loses its connection; its resource waits for the next.
#[test]
fn garbage_after_the_handshake() -> Outcome {
    let pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    for (n, bytes) in bad_frames().into_iter().enumerate().step_by(7) {
        let mut session = handshake(&pair, "disk1")?;
        let _ = session.0.send_bytes(&bytes);
        let _ = session.0.end();
        // The secondary closes both; on the reply connection nothing but whole frames may come.
        let _ = session.1.receive_to_end();
        wait_until("disk1's worker to be gone", SHORT, || Ok(pair.b.worker("disk1")?.is_none()))?;
        if n % 3 == 0 {
            unaffected(&pair, &mut volume, n as u64)?;
        }
    }
    let untouched = disk::data(&pair.b.provider("disk1"))?;
    assert!(untouched.iter().all(|byte| *byte == 0), "not a byte was written");
    pair.finish()
}

/// A complete handshake as a primary that has never been anybody else.
fn handshake(pair: &Pair, name: &str) -> Result<(Wire, Wire), Failure> {
    let mut out = Wire::connect(pair.link.toward_b().hast())?;
    let mut first = resource(name);
    first.u8("version", 2);
    out.send(&Packet::new(1, &first))?;
    let answer = out.receive()?;
    let token = answer.list().u8_array("token").map(<[u8]>::to_vec).unwrap_or_default();
    let mut wire_in = Wire::connect(pair.link.toward_b().hast())?;
    let mut second = resource(name);
    second.u8_array("token", &token).u64("resuid", 4711).u64("localcnt", 1).u64("remotecnt", 0);
    wire_in.send(&Packet::new(2, &second))?;
    let answer = out.receive()?;
    if answer.list().contains("errmsg") {
        return Failure::because(format!("refused: {:?}", answer.fields()));
    }
    Ok((out, wire_in))
}

/// A configuration that is nonsense is refused on reload, whatever the nonsense is.
#[test]
fn in_the_configuration() -> Outcome {
    let pair = pair()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let good = std::fs::read(pair.conf_path())?;
    let mut bad: Vec<Vec<u8>> = vec![
        // (Odd characters alone are skipped with a warning, as in the original.)
        [vec![0xff; 1000], b"resource".to_vec()].concat(),
        b"resource".to_vec(),
        good[..good.len() - 3].to_vec(),
        [b"timeout 0\n".to_vec(), good.clone()].concat(),
        [b"replication perhaps\n".to_vec(), good.clone()].concat(),
        [good.clone(), b"resource disk0 { on a { local /x remote none } }\n".to_vec()].concat(),
        [good.clone(), b"resource x { on a { remote none } on b { remote none local /y } }\n".to_vec()]
            .concat(),
    ];
    bad.push(
        [
            good.clone(),
            [b"resource ".to_vec(), vec![b'x'; 300], b" { local /x on a { remote none } }".to_vec()].concat(),
        ]
        .concat(),
    );
    for text in bad {
        std::fs::write(pair.conf_path(), &text)?;
        let before = pair.a.log().matches("not reloaded").count();
        pair.a.signal(nix::sys::signal::Signal::SIGHUP)?;
        wait_until("the refusal", SHORT, || Ok(pair.a.log().matches("not reloaded").count() > before))?;
        std::fs::write(pair.conf_path(), &good)?;
        unaffected(&pair, &mut volume, 2)?;
    }
    pair.finish()
}
