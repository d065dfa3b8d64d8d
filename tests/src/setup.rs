//! What a pair looks like: its resources and the hast.conf that both nodes share.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// One resource of a pair.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// The resource's name.
    pub name: String,
    /// Statements at resource level, as hast.conf has them.
    pub statements: String,
    /// More statements for node a's section.
    pub on_a: String,
    /// More statements for node b's section.
    pub on_b: String,
    /// What node a's section says for `remote` instead of the link.
    pub remote_a: Option<String>,
    /// What node b's section says for `remote` instead of the link.
    pub remote_b: Option<String>,
    /// Where node a's provider is, instead of `<directory>/a/<name>.img`.
    pub local_a: Option<PathBuf>,
}

impl Resource {
    /// A resource with every default.
    pub fn named(name: &str) -> Resource {
        Resource { name: name.to_string(), ..Resource::default() }
    }

    /// The same with statements at resource level.
    pub fn with(name: &str, statements: &str) -> Resource {
        Resource { name: name.to_string(), statements: statements.to_string(), ..Resource::default() }
    }
}

/// Everything a pair is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Size of each provider in bytes.
    pub provider: u64,
    /// Extent size given to `hastctl create`, bytes.
    pub extent: u64,
    /// Statements at the top level.
    pub globals: String,
    /// The resources.
    pub resources: Vec<Resource>,
    /// Where the pair's directory is made; none: where temporary files go.
    pub root: Option<PathBuf>,
}

/// One resource `disk0` on 16 MiB providers with 64 KiB extents and a time-out of 5 s.
impl Default for Setup {
    fn default() -> Setup {
        Setup {
            provider: 16 << 20,
            extent: 64 << 10,
            globals: "timeout 5\n".to_string(),
            resources: vec![Resource::named("disk0")],
            root: None,
        }
    }
}

impl Setup {
    /// The default pair with these statements in its resource.
    pub fn with(statements: &str) -> Setup {
        Setup { resources: vec![Resource::with("disk0", statements)], ..Setup::default() }
    }

    /// The default pair with more statements at the top level.
    pub fn globally(mut self, statements: &str) -> Setup {
        self.globals.push_str(statements);
        self.globals.push('\n');
        self
    }
}

/// One node's addresses, as hast.conf writes them.
#[derive(Clone, Debug)]
pub struct NodeAddresses {
    /// Where the node listens.
    pub listen: String,
    /// Where its connections come from; none leaves `source` out.
    pub source: Option<String>,
    /// Where it finds the other node.
    pub remote: String,
}

impl Setup {
    /// The hast.conf of the pair whose nodes live in `<directory>/a` and `<directory>/b`.
    pub fn conf(&self, directory: &Path, a: &NodeAddresses, b: &NodeAddresses) -> String {
        let mut text = String::new();
        text.push_str(&self.globals);
        for (name, addresses) in [("a", a), ("b", b)] {
            let home = directory.join(name);
            let home = home.display();
            let listen = &addresses.listen;
            let _ = writeln!(
                text,
                "on {name} {{\n    control uds://{home}/control\n    pidfile {home}/hastd.pid\n    listen {listen}\n\
                 #%  nbd {home}\n}}"
            );
        }
        for resource in &self.resources {
            let _ = writeln!(text, "resource {} {{", resource.name);
            for line in resource.statements.lines() {
                let _ = writeln!(text, "    {}", line.trim());
            }
            let nodes = [
                ("a", a, &resource.on_a, &resource.remote_a, &resource.local_a),
                ("b", b, &resource.on_b, &resource.remote_b, &None),
            ];
            for (name, addresses, more, remote, local) in nodes {
                let default = directory.join(name).join(format!("{}.img", resource.name));
                let local = local.as_ref().unwrap_or(&default);
                let remote = remote.as_ref().unwrap_or(&addresses.remote);
                let _ = writeln!(text, "    on {name} {{");
                let _ = writeln!(text, "        local {}", local.display());
                let _ = writeln!(text, "        remote {remote}");
                // A node without a peer needs no source.
                if let (Some(source), true) = (&addresses.source, remote != "none") {
                    let _ = writeln!(text, "        source {source}");
                }
                for line in more.lines() {
                    let _ = writeln!(text, "        {}", line.trim());
                }
                let _ = writeln!(text, "    }}");
            }
            text.push_str("}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conf_says_what_the_setup_says() {
        let addresses = |n: u8| NodeAddresses {
            listen: format!("tcp4://127.0.0.{n}"),
            source: Some(format!("tcp4://127.0.0.{n}")),
            remote: format!("tcp4://127.0.0.{}", 3 - n),
        };
        let mut setup = Setup::with("replication async\nchecksum crc32").globally("metaflush off");
        setup.resources[0].remote_b = Some("none".to_string());
        let text = setup.conf(Path::new("/x"), &addresses(1), &addresses(2));
        for expected in [
            "timeout 5\nmetaflush off\non a {",
            "control uds:///x/a/control\n",
            "#%  nbd /x/b\n",
            "resource disk0 {\n    replication async\n    checksum crc32\n    on a {\n",
            "local /x/a/disk0.img\n        remote tcp4://127.0.0.2\n        source tcp4://127.0.0.1\n",
            "local /x/b/disk0.img\n        remote none\n    }\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
        }
    }
}
