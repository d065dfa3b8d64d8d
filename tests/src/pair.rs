//! Two nodes in one temporary directory with a link between them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::setup::NodeAddresses;
use crate::{Context, Failure, Link, Loopback, Node, Outcome, SHORT, Setup, disk, wait_until};

/// Nodes a and b, their link and their providers.
#[derive(Debug)]
pub struct Pair {
    /// Node a, the first primary.
    pub a: Node,
    /// Node b, the first secondary.
    pub b: Node,
    /// What lies between them.
    pub link: Link,
    /// What the pair was made from; change it and call [`Pair::write_conf`].
    pub setup: Setup,
    addresses: [NodeAddresses; 2],
    directory: TempDir,
    reserved: [Loopback; 2],
    finished: bool,
}

impl Pair {
    /// Directories, hast.conf and providers; nothing created on them and nothing running yet.
    pub fn blank(setup: Setup) -> Result<Pair, Failure> {
        let directory = match &setup.root {
            Some(root) => scratch_in(root, "hast-test-")?,
            None => scratch("hast-test-")?,
        };
        let (a, b) = (Loopback::reserve()?, Loopback::reserve()?);
        let link = Link::between(a.ip(), b.ip())?;
        let addresses = [
            NodeAddresses { listen: a.conf(), source: Some(a.conf()), remote: link.toward_b().conf() },
            NodeAddresses { listen: b.conf(), source: Some(b.conf()), remote: link.toward_a().conf() },
        ];
        let conf = directory.path().join("hast.conf");
        let node = |name: &str| Node::new(name, &directory.path().join(name), &conf);
        let pair = Pair {
            a: node("a")?,
            b: node("b")?,
            link,
            setup,
            addresses,
            directory,
            reserved: [a, b],
            finished: false,
        };
        pair.write_conf()?;
        pair.write_hook()?;
        for resource in &pair.setup.resources {
            for node in [&pair.a, &pair.b] {
                disk::make(&node.provider(&resource.name), pair.setup.provider)?;
            }
        }
        Ok(pair)
    }

    /// A pair whose resources are created and whose daemons run, all in role init.
    pub fn started(setup: Setup) -> Result<Pair, Failure> {
        let mut pair = Pair::blank(setup)?;
        pair.create()?;
        pair.a.start()?;
        pair.b.start()?;
        Ok(pair)
    }

    /// A running pair: b secondary, a primary, every resource complete.
    pub fn up(setup: Setup) -> Result<Pair, Failure> {
        let pair = Pair::started(setup)?;
        pair.in_step()?;
        Ok(pair)
    }

    /// A running pair whose nodes reach each other without the link between them: for measuring.
    pub fn up_direct(setup: Setup) -> Result<Pair, Failure> {
        let mut pair = Pair::blank(setup)?;
        let [a, b] = &mut pair.addresses;
        (a.remote, b.remote) = (b.listen.clone(), a.listen.clone());
        pair.write_conf()?;
        pair.create()?;
        pair.start_in_step()?;
        Ok(pair)
    }

    /// Starts both daemons of a pair whose resources are created, b as secondary and a as primary, and waits until
    /// every resource is complete.
    pub fn start_in_step(&mut self) -> Outcome {
        self.a.start()?;
        self.b.start()?;
        self.in_step()
    }

    fn in_step(&self) -> Outcome {
        self.b.role("secondary", "all")?;
        self.a.role("primary", "all")?;
        for resource in &self.setup.resources {
            self.a.wait_in_step(&resource.name)?;
        }
        Ok(())
    }

    /// `hastctl create` on both nodes.
    pub fn create(&self) -> Outcome {
        let extent = self.setup.extent.to_string();
        for resource in &self.setup.resources {
            for node in [&self.a, &self.b] {
                node.ctl(&["create", "-e", &extent, &resource.name])?;
            }
        }
        Ok(())
    }

    /// The pair's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the directory where it is when the pair is gone.
    pub fn keep(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }

    /// The text of hast.conf as the setup has it now; `@dir@` and `@hook@` in statements stand for
    /// the pair's directory and for [`Pair::hook`].
    pub fn conf(&self) -> String {
        let [a, b] = &self.addresses;
        let text = self.setup.conf(self.directory(), a, b);
        text.replace("@hook@", &self.hook().display().to_string())
            .replace("@dir@", &self.directory().display().to_string())
    }

    /// The file that both nodes read.
    pub fn conf_path(&self) -> PathBuf {
        self.directory().join("hast.conf")
    }

    /// Where each node listens and what it connects to: a's, then b's.
    pub fn addresses(&mut self) -> &mut [NodeAddresses; 2] {
        &mut self.addresses
    }

    /// The address that node b listens on.
    pub fn b_listens(&self) -> std::net::SocketAddr {
        self.reserved[1].hast()
    }

    /// The address that node a listens on.
    pub fn a_listens(&self) -> std::net::SocketAddr {
        self.reserved[0].hast()
    }

    /// Writes hast.conf anew.
    pub fn write_conf(&self) -> Outcome {
        std::fs::write(self.conf_path(), self.conf()).context("hast.conf")
    }

    /// The hook for `exec`: it appends its arguments to the file `hooks` of the node that runs it, and what it finds
    /// in its environment to `hook-facts`.
    pub fn hook(&self) -> PathBuf {
        self.directory().join("hook")
    }

    fn write_hook(&self) -> Outcome {
        let path = self.hook();
        let facts = "$HAST_RESOURCE $HAST_EVENT $HAST_ROLE $HAST_STATUS $HAST_DIRTY";
        let text = format!(
            "#!/bin/sh\necho \"{facts}\" >>\"$HAST_TEST_NODE/hook-facts\"\n\
             printf '%s\\n' \"$*\" >>\"$HAST_TEST_NODE/hooks\"\n"
        );
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Waits until both providers hold the same data.
    pub fn wait_same_data(&self, resource: &str) -> Outcome {
        let (a, b) = (self.a.provider(resource), self.b.provider(resource));
        let mut last = String::new();
        wait_until("the providers to hold the same data", SHORT, || match disk::same_data(&a, &b) {
            Ok(()) => Ok(true),
            Err(failure) => {
                last = failure.to_string();
                Ok(false)
            }
        })
        .context(last)
    }

    /// Ends a test that went well: both daemons must stop with 0, leave neither socket nor pidfile, and
    /// have logged nothing that is a defect of theirs whatever the test was about.
    pub fn finish(mut self) -> Outcome {
        for node in [&mut self.a, &mut self.b] {
            if !node.is_running()? {
                continue;
            }
            let status = node.stop()?;
            if status.code() != Some(0) {
                return Failure::because(format!("hastd on node {} ended with {status}", node.name()));
            }
            for left in [node.control(), node.pidfile()] {
                if left.exists() {
                    return Failure::because(format!("{} was left behind", left.display()));
                }
            }
        }
        for node in [&self.a, &self.b] {
            let log = node.log();
            let bad = log.lines().find(|line| line.contains("[CRIT]") || line.contains("panicked"));
            if let Some(line) = bad {
                return Failure::because(format!("node {} logged: {line}", node.name()));
            }
        }
        self.finished = true;
        Ok(())
    }
}

/// A pair that was not finished belongs to a test that failed: it shows what the daemons said.
impl Drop for Pair {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        eprintln!("---- hast.conf\n{}", std::fs::read_to_string(self.conf_path()).unwrap_or_default());
        for node in [&self.a, &self.b] {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            let skipped = lines.len().saturating_sub(150);
            eprintln!("---- node {}: hastd's log ({skipped} earlier lines left out)", node.name());
            for line in lines.iter().skip(skipped) {
                eprintln!("{line}");
            }
        }
    }
}

/// A temporary directory whose path is short enough for unix sockets and made of hast.conf's
/// characters only.
pub fn scratch(prefix: &str) -> Result<TempDir, Failure> {
    let configured = std::env::temp_dir();
    let usable = configured.to_str().is_some_and(|path| {
        path.len() <= 50 && path.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
    });
    scratch_in(if usable { &configured } else { Path::new("/tmp") }, prefix)
}

/// The same in a directory of the caller's choice.
pub fn scratch_in(root: &Path, prefix: &str) -> Result<TempDir, Failure> {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(root).context(root.display())?;
    // A hastd that drops its privileges must still reach its sockets.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}
