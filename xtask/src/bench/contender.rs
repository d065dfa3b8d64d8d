//! Who is measured: a server of one disk, over NBD on a unix socket.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use hast_tests::pair::scratch_in;
use hast_tests::{Context, Failure, LONG, Loopback, Pair, Resource, Setup, wait_until};
use tempfile::TempDir;

use super::Server;
use super::cost::{self, Cost};

/// Size of what each contender serves, in bytes.
pub(super) const DISK: u64 = 1 << 30;
/// Extent size of the pairs, in bytes.
pub(super) const EXTENT: u64 = 2 << 20;
/// The resource of a pair.
pub(super) const RESOURCE: &str = "disk0";
/// Room for metadata and map.
const MARGIN: u64 = 2 << 20;

/// One contender, running.
pub(super) struct Contender {
    pub(super) name: String,
    /// Where its device is.
    pub(super) uri: String,
    running: Running,
}

/// What keeps it running; it ends with this.
#[expect(clippy::large_enum_variant, reason = "a handful of them, made once")]
enum Running {
    Pair(Pair),
    Servers(Vec<Server>, #[expect(dead_code, reason = "held for its end")] TempDir),
}

impl Contender {
    /// One file, no replication: the limit.
    pub(super) fn plain(root: &Path) -> Result<Contender, Failure> {
        let directory = scratch_in(root, "hast-bench-")?;
        let (file, socket) = (directory.path().join("disk"), directory.path().join("socket"));
        fill(&file, DISK)?;
        let server = Server::start(qemu_nbd(&file).arg("-k").arg(&socket))?;
        listening(&socket)?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Contender { name: "qemu-nbd".into(), uri, running: Running::Servers(vec![server], directory) })
    }

    /// What one would take instead of us: a mirror of a local file and one served over TCP.
    pub(super) fn quorum(root: &Path) -> Result<Contender, Failure> {
        let directory = scratch_in(root, "hast-bench-")?;
        let (local, remote) = (directory.path().join("local"), directory.path().join("remote"));
        let socket = directory.path().join("socket");
        fill(&local, DISK)?;
        fill(&remote, DISK)?;
        let host = Loopback::reserve()?;
        let far = Server::start(qemu_nbd(&remote).args(["-b", &host.ip().to_string(), "-p", "10809"]))?;
        let address = (host.ip(), 10809);
        wait_until("qemu-nbd to listen", LONG, || Ok(std::net::TcpStream::connect(address).is_ok()))?;
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &format!("driver=file,node-name=local,filename={}", local.display())]);
        command.args([
            "--blockdev",
            &format!(
                "driver=nbd,node-name=remote,server.type=inet,server.host={},server.port=10809",
                host.ip()
            ),
        ]);
        command.args([
            "--blockdev",
            "driver=quorum,node-name=both,children.0=local,children.1=remote,vote-threshold=1,read-pattern=fifo",
        ]);
        command.args([
            "--nbd-server",
            &format!("addr.type=unix,addr.path={},max-connections=0", socket.display()),
        ]);
        command.args(["--export", "type=nbd,id=export,node-name=both,name=both,writable=on"]);
        let near = Server::start(&mut command)?;
        listening(&socket)?;
        let uri = format!("nbd+unix:///both?socket={}", socket.display());
        Ok(Contender { name: "quorum".into(), uri, running: Running::Servers(vec![near, far], directory) })
    }

    /// A pair of ours in one mode.
    pub(super) fn pair(root: &Path, mode: &str) -> Result<Contender, Failure> {
        let pair = Pair::up_direct(setup(root, mode))?;
        for node in [&pair.a, &pair.b] {
            fill_behind(&node.provider(RESOURCE))?;
        }
        Contender::of_pair(pair, mode)
    }

    /// The same around a pair that runs already.
    pub(super) fn of_pair(pair: Pair, name: &str) -> Result<Contender, Failure> {
        let uri = uri(&pair, RESOURCE);
        Ok(Contender { name: name.into(), uri, running: Running::Pair(pair) })
    }

    /// Somebody else's server.
    pub(super) fn other(root: &Path, [name, command, uri]: &[String; 3]) -> Result<Contender, Failure> {
        let directory = scratch_in(root, "hast-bench-")?;
        let server = Server::start(Command::new("sh").arg("-c").arg(command).current_dir(directory.path()))?;
        wait_until(&format!("{name} to serve {uri}"), LONG, || {
            Ok(hast_tests::Run::of(Command::new("nbdinfo").args(["--size", uri]))?.code == 0)
        })?;
        Ok(Contender {
            name: name.clone(),
            uri: uri.clone(),
            running: Running::Servers(vec![server], directory),
        })
    }

    /// What its processes have used so far.
    pub(super) fn cost(&self) -> Result<Cost, Failure> {
        let groups: Vec<i32> = match &self.running {
            Running::Pair(pair) => vec![pair.a.pid()?.as_raw(), pair.b.pid()?.as_raw()],
            Running::Servers(servers, _) => servers.iter().map(Server::group).collect(),
        };
        cost::of_groups(&groups)
    }

    /// Ends it; a pair must end well.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.running {
            Running::Pair(pair) => pair.finish(),
            Running::Servers(..) => Ok(()),
        }
    }
}

/// A pair's setup for measuring: everything at its default but the mode.
pub(super) fn setup(root: &Path, mode: &str) -> Setup {
    Setup {
        provider: DISK + MARGIN,
        extent: EXTENT,
        globals: String::new(),
        resources: vec![Resource::with(RESOURCE, &format!("replication {mode}"))],
        root: Some(root.to_owned()),
    }
}

/// Where the device of a resource of node a is.
pub(super) fn uri(pair: &Pair, resource: &str) -> String {
    format!("nbd+unix:///{resource}?socket={}", pair.a.socket(resource).display())
}

/// qemu-nbd for one file, as persistent as ours and for as many clients.
pub(super) fn qemu_nbd(file: &Path) -> Command {
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-t", "-e", "64"]).arg(file);
    command
}

/// A file whose every block is there: nothing is measured on holes.
pub(super) fn fill(path: &Path, size: u64) -> Result<(), Failure> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).context(path.display())?;
    let block = block();
    let mut left = size;
    while left > 0 {
        let length = left.min(block.len() as u64);
        file.write_all(block.get(..usize::try_from(length)?).context("a part of the block")?)?;
        left -= length;
    }
    Ok(())
}

/// Fills the data area of a provider likewise, behind the daemon's back: the same on both nodes.
pub(super) fn fill_behind(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileExt;
    let metadata = hast_tests::disk::metadata(path)?;
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    let block = block();
    let mut at = 0;
    while at < metadata.datasize {
        let length = usize::try_from((metadata.datasize - at).min(block.len() as u64))?;
        file.write_all_at(block.get(..length).context("a part of the block")?, metadata.localoff + at)?;
        at += length as u64;
    }
    Ok(())
}

/// One MiB that no compression and no search for zeros makes shorter.
fn block() -> Vec<u8> {
    let mut random = hast_sim::random::Random::new(1);
    (0..1 << 17).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

fn listening(socket: &Path) -> Result<(), Failure> {
    wait_until("the server to listen", LONG, || Ok(UnixStream::connect(socket).is_ok()))
}
