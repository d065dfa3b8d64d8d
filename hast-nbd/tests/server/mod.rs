//! A small threaded NBD server around sessions: a disk in memory, a thread for each connection.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hast_nbd::{Command, Export, Kind, NbdError, Pieces, Session};
use hast_net::buffer::{Buffer, Pool};

/// A disk in memory that counts what matters to its clients.
pub(crate) struct Disk {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) flushes: AtomicU64,
    pub(crate) fuas: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) errors: Mutex<Vec<String>>,
}

impl Disk {
    pub(crate) fn new(size: usize) -> Arc<Disk> {
        Arc::new(Disk {
            bytes: Mutex::new(vec![0; size]),
            flushes: AtomicU64::new(0),
            fuas: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            errors: Mutex::new(Vec::new()),
        })
    }

    /// What sessions died of.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    fn execute(&self, kind: Kind) -> Result<Pieces, NbdError> {
        let mut bytes = self.bytes.lock().unwrap();
        match kind {
            Kind::Read { offset, length } => {
                let start = offset as usize;
                let pieces = bytes[start..start + length as usize].chunks(hast_nbd::PIECE);
                return Ok(pieces.map(|piece| Buffer::from(piece.to_vec())).collect());
            }
            Kind::Write { offset, data, fua } => {
                let mut at = offset as usize;
                for piece in data {
                    bytes[at..at + piece.len()].copy_from_slice(&piece);
                    at += piece.len();
                }
                self.fuas.fetch_add(u64::from(fua), Ordering::SeqCst);
            }
            Kind::Trim { offset, length, fua } | Kind::WriteZeroes { offset, length, fua, .. } => {
                bytes[offset as usize..][..length as usize].fill(0);
                self.fuas.fetch_add(u64::from(fua), Ordering::SeqCst);
            }
            Kind::Flush => {
                self.flushes.fetch_add(1, Ordering::SeqCst);
            }
            Kind::Cache { .. } => {}
        }
        Ok(Pieces::new())
    }
}

/// Serves one connection to its end. Commands take effect in the order of arrival; with `shuffle` the answers
/// come in another order.
pub(crate) fn serve(mut stream: UnixStream, export: Export, disk: &Disk, shuffle: Option<u64>) {
    disk.connections.fetch_add(1, Ordering::SeqCst);
    let mut session = Session::new(export, Pool::new());
    let mut seed = shuffle;
    loop {
        let commands: Vec<Command> = std::iter::from_fn(|| session.poll_command()).collect();
        let mut results: Vec<_> =
            commands.into_iter().map(|command| (command.handle, disk.execute(command.kind))).collect();
        while !results.is_empty() {
            let pick = seed.as_mut().map_or(0, |seed| {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (*seed >> 33) as usize % results.len()
            });
            let (handle, result) = results.remove(pick);
            session.complete(handle, result);
        }
        while let Some(buffer) = session.poll_transmit() {
            if stream.write_all(&buffer).is_err() {
                return;
            }
        }
        if session.is_finished() {
            return;
        }
        if session.in_flight() > 0 {
            continue;
        }
        assert!(session.wants_input(), "with nothing in flight there is room");
        match stream.read(session.space()) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if let Err(error) = session.advance(count) {
                    disk.errors.lock().unwrap().push(error.to_string());
                    return;
                }
            }
        }
    }
}

/// A listening server; stops when dropped.
pub(crate) struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(path: &Path, export: Export, disk: Arc<Disk>) -> Server {
        let listener = UnixListener::bind(path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut connections = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (export, disk, stream) = (export.clone(), Arc::clone(&disk), stream.unwrap());
                    connections.push(std::thread::spawn(move || serve(stream, export, &disk, Some(1))));
                }
                connections.into_iter().for_each(|connection| connection.join().unwrap());
            }
        });
        Server { path: path.to_owned(), stop, thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}
