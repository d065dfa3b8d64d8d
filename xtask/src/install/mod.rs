//! `cargo xtask install`: programs, manuals, what starts them, scripts and examples, below a prefix.

mod plan;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lexopt::Arg::Long;
use nix::errno::Errno;
use nix::unistd::AccessFlags;
use plan::{Item, Source, System, plan};

use crate::{release, tools};

/// Where things go, and where the programs come from.
struct Options {
    prefix: PathBuf,
    /// Stands for `/`.
    destdir: PathBuf,
    /// Has the programs; without it they are built.
    from: Option<PathBuf>,
    list: bool,
}

pub(crate) fn main(parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let options = parse(parser)?;
    let items = plan(System::HERE, &options.prefix);
    if options.list {
        items.iter().for_each(|item| println!("{}", place(&options.destdir, &item.to).display()));
        return Ok(ExitCode::SUCCESS);
    }
    tools::enter_root()?;
    let from = match &options.from {
        Some(directory) => directory.clone(),
        None => release::build_shipping().map_err(|failure| failure.to_string())?,
    };
    if forbidden(&place(&options.destdir, &options.prefix)) {
        return as_root(&options, &from);
    }
    for item in &items {
        let to = place(&options.destdir, &item.to);
        put(item, &from, &options.prefix, &to).map_err(|error| format!("{}: {error}", to.display()))?;
        println!("{}", to.display());
    }
    println!("\n{} files. The same command with --list names them: `... --list | xargs rm -f`.", items.len());
    Ok(ExitCode::SUCCESS)
}

fn parse(mut parser: lexopt::Parser) -> Result<Options, lexopt::Error> {
    let (mut prefix, mut destdir) = (PathBuf::from("/usr/local"), PathBuf::from("/"));
    let (mut from, mut list) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("prefix") => prefix = parser.value()?.into(),
            // The current directory is about to change.
            Long("destdir") => destdir = absolute(parser.value()?.into())?,
            Long("from") => from = Some(absolute(parser.value()?.into())?),
            Long("list") => list = true,
            other => return Err(other.unexpected()),
        }
    }
    if !prefix.is_absolute() {
        return Err(format!("the prefix {} does not begin with a slash", prefix.display()).into());
    }
    Ok(Options { prefix, destdir, from, list })
}

fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// A path below the directory that stands for `/`.
fn place(destdir: &Path, path: &Path) -> PathBuf {
    destdir.join(path.strip_prefix("/").unwrap_or(path))
}

/// Whether this user may not write there, or where it has to be made.
fn forbidden(directory: &Path) -> bool {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    nix::unistd::access(there, AccessFlags::W_OK) == Err(Errno::EACCES)
}

/// Has the copying alone done by root, so that nothing is built as root.
fn as_root(options: &Options, from: &Path) -> Result<ExitCode, lexopt::Error> {
    let xtask = std::env::current_exe().map_err(|error| format!("xtask does not know itself: {error}"))?;
    let mut command = Command::new("sudo");
    command.arg(xtask).args(["install", "--prefix"]).arg(&options.prefix);
    command.arg("--destdir").arg(&options.destdir).arg("--from").arg(from);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let shown = words.join(" ");
    if hast_tests::tools::find("sudo").is_none() {
        return Err(format!("{} is root's; as root: {shown}", options.prefix.display()).into());
    }
    println!("$ sudo {shown}");
    let status = command.status().map_err(|error| format!("sudo: {error}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts one file in its place, in one step: a program that is running is no obstacle.
fn put(item: &Item, programs: &Path, prefix: &Path, to: &Path) -> io::Result<()> {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = to.with_file_name(name);
    if let Some(directory) = to.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match item.from {
        Source::Program(name) => program(&programs.join(name), &new)?,
        Source::File(path) => std::fs::copy(path, &new).map(drop)?,
        Source::Text(path) => {
            let prefix = prefix.display().to_string();
            let prefix = prefix.trim_end_matches('/');
            let text = std::fs::read_to_string(path)?;
            std::fs::write(
                &new,
                text.replace("%%PREFIX%%", prefix).replace("/usr/local/", &format!("{prefix}/")),
            )?;
        }
    }
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(item.mode))?;
    std::fs::rename(&new, to)
}

/// A program without what only a debugger needs: that is most of it. As it is where there is no strip(1).
fn program(from: &Path, to: &Path) -> io::Result<()> {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(from).output();
    if stripped.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("{} is not stripped.", from.display());
    std::fs::copy(from, to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::PROGRAMS;

    /// A directory with files in place of the programs.
    fn programs() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in PROGRAMS {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        directory
    }

    fn install(from: &Path, root: &Path, prefix: &str) {
        let words = ["install".as_ref(), "--prefix".as_ref(), prefix.as_ref(), "--destdir".as_ref()];
        let words = words.into_iter().chain([root.as_os_str(), "--from".as_ref(), from.as_os_str()]);
        // The first word is the command's name.
        main(lexopt::Parser::from_iter(words)).unwrap();
    }

    #[test]
    fn everything_is_where_it_is_looked_for() {
        let (from, root) = (programs(), tempfile::tempdir().unwrap());
        install(from.path(), root.path(), "/opt/hast/");
        // Once more, over what is there.
        install(from.path(), root.path(), "/opt/hast/");
        for item in plan(System::HERE, Path::new("/opt/hast")) {
            let path = place(root.path(), &item.to);
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, item.mode, "{}", path.display());
            if let Source::Text(_) = item.from {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains("/usr/local/") && !text.contains("%%PREFIX%%"), "{}", path.display());
            }
        }
        let directory = root.path().join("opt/hast/sbin");
        assert_eq!(
            std::fs::read_dir(directory).unwrap().count(),
            PROGRAMS.len(),
            "nothing else is left there"
        );
    }

    #[test]
    fn a_prefix_begins_with_a_slash() {
        let words = ["install", "--prefix", "usr"];
        assert!(main(lexopt::Parser::from_iter(words)).unwrap_err().to_string().contains("slash"));
    }
}
