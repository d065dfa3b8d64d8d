//! A small TCP service and its client, for the tests of failover.
//!
//! `hast-lines serve ADDRESS FILE` appends each line that it receives to FILE, and answers with the same line once
//! it is on the disk. `hast-lines send ADDRESS RECORD` sends numbered lines, one after the other, and notes in
//! RECORD each one that was answered; one that was not is sent again, over another connection if need be.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", address, file] => serve(address, Path::new(file)),
        ["send", address, record] => send(address, Path::new(record)),
        _ => {
            eprintln!("usage: hast-lines serve|send ADDRESS FILE");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hast-lines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str, path: &Path) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let file = Arc::new(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?));
    for connection in listener.incoming() {
        let (connection, file) = (connection?, Arc::clone(&file));
        std::thread::spawn(move || answer(&connection, &file));
    }
    Ok(())
}

/// One connection; whatever fails ends it without an answer.
fn answer(connection: &TcpStream, file: &Mutex<File>) -> Result<()> {
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
        {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // In one piece, and after a newline of its own: half a line may be left from before a crash.
            file.write_all(format!("\n{line}").as_bytes())?;
            file.sync_all()?;
        }
        (&*connection).write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn send(address: &str, record: &Path) -> Result<()> {
    let address: SocketAddr =
        address.parse().map_err(|error| std::io::Error::new(ErrorKind::InvalidInput, error))?;
    let mut record = OpenOptions::new().create(true).append(true).open(record)?;
    let mut number = 0_u64;
    loop {
        // Refused, or nobody there: tried again.
        let Ok(connection) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let _ = (connection.set_nodelay(true), connection.set_read_timeout(Some(Duration::from_secs(2))));
        let mut answers = BufReader::new(&connection);
        loop {
            let line = format!("line {number}\n");
            let mut answer = String::new();
            let exchanged =
                (&connection).write_all(line.as_bytes()).and_then(|()| answers.read_line(&mut answer));
            if exchanged.is_err() || answer != line {
                break;
            }
            record.write_all(line.as_bytes())?;
            number = number.saturating_add(1);
        }
    }
}
