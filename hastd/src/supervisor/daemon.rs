//! Going into the background, and leaving nothing behind in processes that are started from there.
//!
//! Everything here runs before the first thread does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

use crate::exit;

/// The child's end of what the parent waits for.
#[derive(Debug)]
pub(super) struct Ready(File);

impl Ready {
    /// Lets the parent exit with status 0.
    pub(super) fn tell(mut self) {
        // A parent that was killed needs no answer.
        let _ = self.0.write_all(b"r");
    }
}

/// Continues in a child process that belongs to no terminal, with standard input, output and error at
/// `/dev/null` and `/` as its directory. The parent returns from here never: it exits with status 0 once
/// the child has called [`Ready::tell`], or with the child's own status if that ends before.
pub(super) fn into_background() -> io::Result<Ready> {
    let (reader, writer) = nix::unistd::pipe()?;
    set_close_on_exec(&reader)?;
    set_close_on_exec(&writer)?;
    // SAFETY: no thread has been started yet, so the child may go on with any code.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            std::process::exit(wait_for(child, File::from(reader)));
        }
        ForkResult::Child => {
            drop(reader);
            setsid()?;
            chdir("/")?;
            let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            dup2_stderr(&null)?;
            Ok(Ready(File::from(writer)))
        }
    }
}

fn wait_for(child: Pid, mut reader: File) -> i32 {
    let mut byte = [0; 1];
    if let Ok(1) = reader.read(&mut byte) {
        return 0;
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) => status,
        _ => exit::OS_ERROR,
    }
}

/// Marks every descriptor above 2 that this process was born with, so that no worker and no hook inherits it.
pub(super) fn keep_descriptors_private() {
    // Nothing has been opened by ourselves yet (and what is opened later is marked by the library).
    let listed = std::fs::read_dir("/dev/fd").ok().filter(|_| cfg!(target_os = "linux"));
    let numbers: Vec<i32> = match listed {
        Some(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).collect()
        }
        // FreeBSD without fdescfs(5) lists 0 to 2 only.
        None => (3..1024).collect(),
    };
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: sets a flag of a descriptor; if there is none with this number, that is an error that is
        // of no interest.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn set_close_on_exec(fd: &impl std::os::fd::AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
