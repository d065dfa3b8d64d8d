//! The demo's two nodes. Both listen on 127.0.0.1, which every system has, on ports of their own;
//! hastd tells peers apart by address alone, so that one address serves for both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use hast_tests::link::Relay;
use hast_tests::setup::NodeAddresses;
use hast_tests::{Context, Failure, Node, Resource, SHORT, Setup, disk, wait_until};
use nix::sys::signal::Signal;

use super::guard::Guard;

/// The demo's resource, which is also its provider's name.
pub(crate) const RESOURCE: &str = "demo";
/// Size of each provider in bytes; the files are sparse.
pub(crate) const PROVIDER: u64 = 256 << 20;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Nodes a and b, their hast.conf and the relay through which b reaches a.
pub(crate) struct Nodes {
    pub(crate) a: Node,
    pub(crate) b: Node,
    /// Counts what b sends to a: this is how the demo knows what a resynchronisation costs.
    pub(crate) toward_a: Relay,
    conf: PathBuf,
    setup: Setup,
    ports: [u16; 2],
    guard: Guard,
}

impl Nodes {
    /// Directories, providers and hast.conf.
    pub(crate) fn make(directory: &Path, guard: &Guard) -> Result<Nodes, Failure> {
        let conf = directory.join("hast.conf");
        let ports = free_ports()?;
        let [port_a, _] = ports;
        let any = SocketAddr::new(LOCALHOST, 0);
        let nodes = Nodes {
            a: Node::new("a", &directory.join("a"), &conf)?,
            b: Node::new("b", &directory.join("b"), &conf)?,
            toward_a: Relay::start(any, SocketAddr::new(LOCALHOST, port_a), LOCALHOST)?,
            conf,
            setup: Setup {
                provider: PROVIDER,
                resources: vec![Resource::named(RESOURCE)],
                ..Setup::default()
            },
            ports,
            guard: guard.clone(),
        };
        for node in [&nodes.a, &nodes.b] {
            disk::make(&node.provider(RESOURCE), PROVIDER)?;
        }
        nodes.write_conf(nodes.toward_a.address().port())?;
        Ok(nodes)
    }

    /// The file that both nodes read.
    pub(crate) fn conf(&self) -> &Path {
        &self.conf
    }

    /// Writes hast.conf; b looks for a at this port.
    fn write_conf(&self, port_of_a_for_b: u16) -> Result<(), Failure> {
        let directory = self.conf.parent().context("hast.conf lies in a directory")?;
        let [a, b] = self.ports;
        let at = |port: u16| format!("tcp4://127.0.0.1:{port}");
        let for_a = NodeAddresses { listen: at(a), source: None, remote: at(b) };
        let for_b = NodeAddresses { listen: at(b), source: None, remote: at(port_of_a_for_b) };
        let text = self.setup.conf(directory, &for_a, &for_b);
        std::fs::write(&self.conf, text).context(self.conf.display())
    }

    /// Starts a node's hastd.
    pub(crate) fn start(&mut self, which: Which) -> Result<(), Failure> {
        let guard = self.guard.clone();
        let node = self.node(which);
        node.launch()?;
        guard.started(node.pid()?);
        node.wait_ready()
    }

    /// Kills a node's hastd and its workers with SIGKILL.
    pub(crate) fn kill(&mut self, which: Which) -> Result<(), Failure> {
        let guard = self.guard.clone();
        let node = self.node(which);
        let group = node.pid()?;
        node.kill()?;
        guard.ended(group);
        Ok(())
    }

    /// Stops both daemons as an administrator would.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        for which in [Which::A, Which::B] {
            let node = self.node(which);
            let group = node.pid()?;
            let status = node.stop()?;
            if !status.success() {
                return Failure::because(format!("hastd on node {} ended with {status}", node.name()));
            }
            self.guard.ended(group);
        }
        Ok(())
    }

    /// Leaves the pair running, without the relay, which ends with this process.
    pub(crate) fn keep(&mut self) -> Result<(), Failure> {
        let [port_a, _] = self.ports;
        self.write_conf(port_a)?;
        self.b.signal(Signal::SIGHUP)?;
        let expected = format!("tcp4://127.0.0.1:{port_a}");
        wait_until("node b to know node a's own address", SHORT, || {
            Ok(self.b.value(RESOURCE, "remoteaddr")?.as_deref() == Some(&expected))
        })?;
        self.b.wait_in_step(RESOURCE)?;
        self.explain();
        let _ = (self.a.leave_running(), self.b.leave_running());
        Ok(())
    }

    fn explain(&self) {
        let conf = self.conf.display();
        let hastctl = hast_tests::programs::Programs::find().map(|found| found.hastctl).unwrap_or_default();
        let hastctl = hastctl.display();
        let socket = self.b.socket(RESOURCE);
        let directory = self.conf.parent().unwrap_or(Path::new("/"));
        println!(
            "\nThe pair stays. Node b is the primary; its disk is the NBD export \"{RESOURCE}\" on\n\
             \x20   {}\n\
             Use it, for example:\n\
             \x20   nbdinfo 'nbd+unix:///{RESOURCE}?socket={}'        (libnbd)\n\
             \x20   nbd-client -unix {} /dev/nbd0 -N {RESOURCE}       (root; then mkfs, mount)\n\
             See and steer it (-N says which node you mean):\n\
             \x20   {hastctl} status -c {conf} -N b\n\
             \x20   {hastctl} role -c {conf} -N b secondary {RESOURCE}\n\
             \x20   {hastctl} role -c {conf} -N a primary {RESOURCE}\n\
             The logs are {}/a/log and b/log. End it:\n\
             \x20   {hastctl} stop -c {conf} -N a; {hastctl} stop -c {conf} -N b; rm -r {}",
            socket.display(),
            socket.display(),
            socket.display(),
            directory.display(),
            directory.display(),
        );
    }

    /// Shows the end of each daemon's log after a failure.
    pub(crate) fn show_logs(&self) {
        for node in [&self.a, &self.b] {
            println!("\n---- the end of hastd's log on node {}", node.name());
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(30)) {
                println!("{line}");
            }
        }
    }

    fn node(&mut self, which: Which) -> &mut Node {
        match which {
            Which::A => &mut self.a,
            Which::B => &mut self.b,
        }
    }
}

/// One of the two.
#[derive(Clone, Copy)]
pub(crate) enum Which {
    A,
    B,
}

/// Two ports that nobody listens on, found by listening on both at once.
fn free_ports() -> Result<[u16; 2], Failure> {
    let a = TcpListener::bind((LOCALHOST, 0))?;
    let b = TcpListener::bind((LOCALHOST, 0))?;
    Ok([a.local_addr()?.port(), b.local_addr()?.port()])
}
