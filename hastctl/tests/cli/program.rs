//! Running `hastctl`, and a node for it to run on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) const HASTCTL: &str = env!("CARGO_BIN_EXE_hastctl");

/// What a run of the program left behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn hastctl(arguments: &[&str]) -> Ran {
    Command::new(HASTCTL).args(arguments).output().unwrap().into()
}

/// A directory with a configuration and providers.
pub(crate) struct Node {
    directory: tempfile::TempDir,
    name: String,
}

impl Node {
    /// Node `name` of a configuration, in which `/hast/` stands for the node's directory.
    pub(crate) fn new(name: &str, configuration: &str) -> Node {
        let node = Node { directory: tempfile::tempdir().unwrap(), name: name.to_owned() };
        let home = format!("{}/", node.directory.path().display());
        fs::write(node.path("hast.conf"), configuration.replace("/hast/", &home)).unwrap();
        node
    }

    /// A node whose one resource, `test`, has a provider of that size.
    pub(crate) fn with_provider(size: u64) -> Node {
        let node = Node::new("a", "resource test { on a { local /hast/a.img remote none } }\n");
        File::create(node.provider()).unwrap().set_len(size).unwrap();
        node
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// The provider of most tests.
    pub(crate) fn provider(&self) -> PathBuf {
        self.path("a.img")
    }

    /// Makes a provider of `size` bytes that begins with `head` and is empty otherwise.
    pub(crate) fn put(&self, file: &str, size: u64, head: &[u8]) {
        let provider = File::create(self.path(file)).unwrap();
        provider.set_len(size).unwrap();
        provider.write_all_at(head, 0).unwrap();
    }

    /// Overwrites a part of a provider.
    pub(crate) fn change(&self, file: &str, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(self.path(file)).unwrap().write_all_at(bytes, offset).unwrap();
    }

    /// The first bytes of a provider.
    pub(crate) fn head(&self, file: &str, length: usize) -> Vec<u8> {
        head_of(&self.path(file), length)
    }

    /// Runs a sub-command as this node. The first word is the sub-command.
    pub(crate) fn hastctl(&self, words: &[&str]) -> Ran {
        self.command(words).output().unwrap().into()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let (sub, rest) = words.split_first().unwrap();
        let mut command = Command::new(HASTCTL);
        command.arg(sub).args(["-N", &self.name, "-c"]).arg(self.path("hast.conf")).args(rest);
        command
    }
}

pub(crate) fn head_of(path: &Path, length: usize) -> Vec<u8> {
    let mut head = vec![0; length];
    File::open(path).unwrap().read_exact_at(&mut head, 0).unwrap();
    head
}

/// What a captured description says about the run it describes.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
