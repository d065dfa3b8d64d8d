//! Which of the kernel's ways makes a device, and the name it is found under.

#[path = "nbd.rs"]
mod nbd;
#[cfg_attr(ublk, path = "ublk.rs")]
#[cfg_attr(not(ublk), path = "no_ublk.rs")]
mod ublk;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hast_conf::KernelDevice;
use hast_nbd::client::{ClientError, Dialect};

use super::{Export, NoDevice};

/// Where the devices are found under their names.
const DIRECTORY: &str = "/dev/hast";
/// How often a worker is asked for its export that does not answer, ten seconds each time: its disk may be slow.
const ATTEMPTS: usize = 6;
/// How the connections are negotiated.
const DIALECT: Dialect = Dialect { structured: false, export_name: false };

/// A device of the kernel, and its name. Both go when this is dropped.
#[derive(Debug)]
pub(in crate::supervisor) struct Attached {
    /// Absent if another one stands for the same device.
    made: Option<Made>,
    name: PathBuf,
}

/// A device, by what made it.
#[derive(Debug)]
enum Made {
    Nbd(nbd::Found),
    Ublk(ublk::Found),
}

impl Made {
    fn node(&self) -> PathBuf {
        match self {
            Made::Nbd(found) => found.node(),
            Made::Ublk(found) => found.node(),
        }
    }

    fn remove(self, name: &Path) {
        unname(name, &self.node());
        match self {
            Made::Nbd(found) => nbd::remove(found, name),
            Made::Ublk(found) => ublk::remove(&found, name),
        }
    }
}

impl Attached {
    /// The same device, or another one, has taken this one's place.
    pub(in crate::supervisor) fn yield_to(mut self, other: &Attached) {
        let same = match (&self.made, &other.made) {
            (Some(Made::Nbd(one)), Some(Made::Nbd(other))) => one == other,
            (Some(Made::Ublk(one)), Some(Made::Ublk(other))) => one.node() == other.node(),
            _ => false,
        };
        if same {
            self.made = None;
        }
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.made.as_ref().map(Made::node).unwrap_or_default();
        write!(f, "{} ({})", self.name.display(), node.display())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            made.remove(&self.name);
        }
    }
}

/// Makes the device; may take a while.
pub(in crate::supervisor) fn attach(export: &Export) -> Result<Attached, NoDevice> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NoDevice::NotOffered("only root can attach it to the kernel".to_owned()));
    }
    let made = make(export)?;
    let node = made.node();
    let attached = Attached { made: Some(made), name: Path::new(DIRECTORY).join(&export.name) };
    // If that fails the device goes again: nobody would find it.
    name(&attached.name, &node).map_err(|error| {
        let (name, error) = (attached.name.display(), hast_log::error_text(&error));
        NoDevice::Failed(format!("unable to make {name}: {error}"))
    })?;
    Ok(attached)
}

fn make(export: &Export) -> Result<Made, NoDevice> {
    let offered = |error: &dyn fmt::Display| NoDevice::NotOffered(error.to_string());
    match export.wanted {
        KernelDevice::None => Err(NoDevice::NotOffered("there is to be none".to_owned())),
        KernelDevice::Nbd => {
            let mut kernel = nbd::open(true).map_err(|error| offered(&error))?;
            sweep_ublk(&export.socket, &export.name);
            nbd::make(&mut kernel, export).map(Made::Nbd)
        }
        KernelDevice::Ublk => {
            let mut kernel = ublk::open(true).map_err(|error| offered(&error))?;
            sweep_nbd(&export.socket, &export.name);
            ublk::make(&mut kernel, export).map(Made::Ublk)
        }
        KernelDevice::Auto => {
            let mut ublk = ublk::open(false);
            // Somebody may still use what was left behind, whatever else there is by now.
            if let Ok(kernel) = &mut ublk
                && ublk::left_behind(kernel, &export.socket)
            {
                return ublk::make(kernel, export).map(Made::Ublk);
            }
            match (nbd::open(false), ublk) {
                (Ok(mut kernel), _) => nbd::make(&mut kernel, export).map(Made::Nbd),
                (Err(_), Ok(mut kernel)) => ublk::make(&mut kernel, export).map(Made::Ublk),
                (Err(nbd), Err(ublk)) => Err(offered(&format_args!("{nbd}, and {ublk}"))),
            }
        }
    }
}

/// Whether a process that was killed has left a device over this socket behind.
pub(in crate::supervisor) fn is_left_behind(socket: &Path) -> bool {
    nbd::find(socket).is_some() || ublk::find(socket).is_some()
}

/// Takes away what a process that was killed left behind.
pub(in crate::supervisor) fn sweep(socket: &Path, name: &str) {
    sweep_nbd(socket, name);
    sweep_ublk(socket, name);
}

fn sweep_nbd(socket: &Path, name: &str) {
    if let Some(found) = nbd::find(socket) {
        discard(Made::Nbd(found), name);
    }
}

fn sweep_ublk(socket: &Path, name: &str) {
    if let Some(found) = ublk::find(socket) {
        discard(Made::Ublk(found), name);
    }
}

fn discard(made: Made, name: &str) {
    let name = Path::new(DIRECTORY).join(name);
    log::warn!("Device {} was left behind and is disconnected.", name.display());
    made.remove(&name);
}

fn load_module(module: &str) -> bool {
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["-q", module]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    modprobe.status().is_ok_and(|status| status.success())
}

/// Connects to the worker and negotiates, patiently.
fn negotiate<T>(
    export: &Export,
    mut negotiate: impl FnMut(UnixStream) -> Result<T, ClientError>,
) -> Result<T, NoDevice> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match UnixStream::connect(&export.socket).map_err(ClientError::from).and_then(&mut negotiate) {
            Err(ClientError::Timeout) if attempts < ATTEMPTS => {}
            result => return result.map_err(|error| NoDevice::Failed(error.to_string())),
        }
    }
}

/// Makes `name` mean `node`, at once or not at all.
fn name(name: &Path, node: &Path) -> io::Result<()> {
    if let Some(directory) = name.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    if fs::symlink_metadata(name).is_ok_and(|there| !there.is_symlink()) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut new = name.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(node, &new)?;
    fs::rename(&new, name)
}

/// `name` means `node` no longer, unless another device has it by now.
fn unname(name: &Path, node: &Path) {
    if fs::read_link(name).is_ok_and(|meant| meant == node)
        && let Err(error) = fs::remove_file(name)
    {
        log::warn!("Unable to remove {}: {}.", name.display(), hast_log::error_text(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_device_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm/disk0");
        for node in ["/dev/nbd0", "/dev/ublkb7"] {
            name(&path, Path::new(node)).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(node));
        }
        unname(&path, Path::new("/dev/nbd0"));
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("/dev/ublkb7"), "it is another one's");
        unname(&path, Path::new("/dev/ublkb7"));
        assert!(fs::read_link(&path).is_err());
        let file = directory.path().join("file");
        fs::write(&file, "somebody's").unwrap();
        assert_eq!(name(&file, Path::new("/dev/nbd0")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");
    }
}
