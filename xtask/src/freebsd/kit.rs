//! What a build for FreeBSD takes on Linux, from package registries only: the compiler that is there, the
//! standard library's source from Debian and built here once, linker and system stubs from PyPI.
//!
//! Everything is kept in one directory outside `target`: `HAST_FREEBSD_HOME`, or `hast-freebsd` in the user's
//! cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Arch, Failure, ask, at, pass};

/// The compiler whose standard library is built.
const TOOLCHAIN: &str = "1.95.0";
/// Debian's suite that has the source of that version.
const SUITE: &str = "trixie-backports";
/// 0.15 loses FreeBSD's ABI note.
const ZIG: &str = "0.17.1";
/// The oldest release that zig knows. Later ones run the same programs.
const RELEASE: &str = "14.0";
/// Libraries that the crate libc names, and that nothing of ours calls. zig has no stubs for them.
const STUBS: &[(&str, u32)] = &[("kvm", 7), ("memstat", 3), ("procstat", 1), ("devstat", 7)];
/// A compiler and its library's source from Debian, should the suite have moved on.
const DEBIAN: &[&str] = &["rustc-web", "rust-web-src", "cargo-web", "rust-web-clippy"];

/// Which compiler, and where its library's source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// The toolchain that rustup has.
    Rustup,
    /// Debian's packages.
    Debian,
}

/// Everything at hand.
pub(super) struct Kit {
    home: PathBuf,
    arch: Arch,
    route: Route,
    /// The directory with the standard library for FreeBSD.
    sysroot: PathBuf,
    linker: PathBuf,
}

impl Kit {
    /// Fetches and builds what is not there yet.
    pub(super) fn prepare(arch: Arch) -> Result<Kit, Failure> {
        let home = home()?;
        fs::create_dir_all(&home).map_err(at(&home))?;
        let zig = zig(&home)?;
        let linker = linker(&home, &zig, arch)?;
        stubs(&home, &linker, arch)?;
        let (route, source) = match rustup_source(&home) {
            Ok(source) => (Route::Rustup, source),
            Err(why) => {
                println!("{why}; taking Debian's compiler");
                (Route::Debian, debian_source()?)
            }
        };
        let version = ask(route.program("rustc").arg("-vV"))?;
        let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
        let known = commit.or_else(|| version.lines().next()).unwrap_or_default().replace([' ', '/'], "-");
        let sysroot = home.join(format!("std-{}-{known}", arch.target()));
        let kit = Kit { home, arch, route, sysroot, linker };
        kit.build_std(&source)?;
        Ok(kit)
    }

    pub(super) fn arch(&self) -> Arch {
        self.arch
    }

    /// Where the project is built for FreeBSD.
    pub(super) fn target_directory(&self) -> PathBuf {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        target.join("freebsd")
    }

    /// Runs cargo for FreeBSD, with these words, split at blanks.
    pub(super) fn cargo(&self, words: &str) -> Result<(), Failure> {
        let mut words = words.split_whitespace();
        let mut command = match (self.route, words.next()) {
            // cargo would find rustup's first.
            (Route::Debian, Some("clippy")) => {
                let mut command = self.route.program("cargo-clippy");
                command.arg("clippy");
                command
            }
            (_, first) => {
                let mut command = self.route.program("cargo");
                command.args(first);
                command
            }
        };
        let flags = [String::from("--sysroot"), self.sysroot.display().to_string()].join("\u{1f}");
        command
            .args(["--target", &self.arch.target()])
            .args(words)
            .env("CARGO_TARGET_DIR", self.target_directory())
            .env(self.variable("LINKER"), &self.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags);
        pass(&mut command)
    }

    /// The compiler for FreeBSD.
    pub(super) fn rustc(&self) -> Command {
        let mut command = self.route.program("rustc");
        command.arg("--target").arg(self.arch.target()).arg("--sysroot").arg(&self.sysroot);
        let mut linker = std::ffi::OsString::from("linker=");
        linker.push(&self.linker);
        command.arg("-C").arg(linker);
        command
    }

    /// Builds the standard library as rustc's own build does: package `sysroot` of its workspace, profile
    /// `dist`. The compiler takes unstable features for this, and for nothing of ours.
    fn build_std(&self, source: &Path) -> Result<(), Failure> {
        let target = self.arch.target();
        let done = self.sysroot.join("done");
        if done.is_file() {
            return Ok(());
        }
        let built = self.home.join("build-std");
        let mut command = self.route.program("cargo");
        command
            .args(["build", "--quiet", "--locked", "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            .args(["-p", "sysroot", "--features", "backtrace", "--profile", "dist", "--target", &target])
            .arg("--target-dir")
            .arg(&built)
            .env("RUSTC_BOOTSTRAP", "1")
            .env(self.variable("LINKER"), &self.linker)
            .env(self.variable("RUSTFLAGS"), "-Zforce-unstable-if-unmarked")
            // The project's own settings are not for it.
            .current_dir(&self.home);
        pass(&mut command)?;
        let libraries = self.sysroot.join("lib/rustlib").join(&target).join("lib");
        fs::create_dir_all(&libraries).map_err(at(&libraries))?;
        let crates = built.join(&target).join("dist/deps");
        for entry in fs::read_dir(&crates).map_err(at(&crates))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".rlib") && !name.starts_with("libsysroot-") {
                fs::copy(entry.path(), libraries.join(&name)).map_err(at(&entry.path()))?;
            }
        }
        // Only to save room.
        let _ = fs::remove_dir_all(&built);
        fs::write(&done, "").map_err(at(&done))
    }

    fn variable(&self, what: &str) -> String {
        format!("CARGO_TARGET_{}_{what}", self.arch.target().to_uppercase().replace('-', "_"))
    }
}

impl Route {
    /// A program of the toolchain, without what the cargo that runs us has set for itself.
    fn program(self, name: &str) -> Command {
        let mut command = match self {
            Route::Rustup => Command::new(name),
            Route::Debian => Command::new(Path::new("/usr/bin").join(name)),
        };
        let ours =
            ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"];
        for variable in ours {
            command.env_remove(variable);
        }
        match self {
            Route::Rustup => command.env("RUSTUP_TOOLCHAIN", TOOLCHAIN),
            Route::Debian => command
                .env_remove("RUSTUP_TOOLCHAIN")
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTDOC", "/usr/bin/rustdoc")
                .env("CARGO", "/usr/bin/cargo"),
        };
        command
    }
}

fn home() -> Result<PathBuf, Failure> {
    if let Some(home) = std::env::var_os("HAST_FREEBSD_HOME") {
        return std::path::absolute(home).map_err(|error| format!("HAST_FREEBSD_HOME: {error}"));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(cache.ok_or("neither HAST_FREEBSD_HOME nor HOME is set")?.join("hast-freebsd"))
}

/// The linker, from PyPI.
fn zig(home: &Path) -> Result<PathBuf, Failure> {
    let directory = home.join(format!("zig-{ZIG}"));
    let zig = directory.join("ziglang/zig");
    if !zig.is_file() {
        let pip = || {
            let mut command = Command::new("python3");
            command.args(["-m", "pip"]);
            command
        };
        if ask(pip().arg("--version")).is_err() {
            install(&["python3-pip"])?;
        }
        pass(
            pip()
                .args(["install", "--quiet", "--no-deps", "--target"])
                .arg(&directory)
                .arg(format!("ziglang=={ZIG}")),
        )?;
    }
    Ok(zig)
}

/// A script that the compiler takes for a linker; what it does is in this program.
fn linker(home: &Path, zig: &Path, arch: Arch) -> Result<PathBuf, Failure> {
    let path = home.join(format!("link-{}", arch.target()));
    let ourselves =
        std::env::current_exe().map_err(|error| format!("xtask does not know itself: {error}"))?;
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let script = format!(
        "#!/bin/sh\nZIG_GLOBAL_CACHE_DIR={} exec {} freebsd link {} {}-freebsd.{RELEASE} {} \"$@\"\n",
        quoted(&home.join("zig-cache")),
        quoted(&ourselves),
        quoted(zig),
        arch.name(),
        quoted(&stub_directory(home, arch)),
    );
    // Somebody may be linking: the file is there at every moment.
    let new = path.with_extension("new");
    fs::write(&new, script).map_err(at(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(at(&new))?;
    fs::rename(&new, &path).map_err(at(&path))?;
    Ok(path)
}

fn stub_directory(home: &Path, arch: Arch) -> PathBuf {
    home.join(format!("stubs-{}", arch.target()))
}

/// Empty libraries for those that nothing of ours calls: the linker drops them, and whoever does call into
/// one of them does not link.
fn stubs(home: &Path, linker: &Path, arch: Arch) -> Result<(), Failure> {
    let directory = stub_directory(home, arch);
    fs::create_dir_all(&directory).map_err(at(&directory))?;
    let source = directory.join("empty.c");
    fs::write(&source, "").map_err(at(&source))?;
    for (name, version) in STUBS {
        let library = directory.join(format!("lib{name}.so"));
        if !library.is_file() {
            let mut command = Command::new(linker);
            command.args(["-shared", "-nostdlib", &format!("-Wl,-soname,lib{name}.so.{version}")]);
            pass(command.arg(&source).arg("-o").arg(&library))?;
        }
    }
    Ok(())
}

/// The source of the toolchain's standard library. Nothing of the system's package lists is touched.
fn rustup_source(home: &Path) -> Result<PathBuf, Failure> {
    let directory = home.join("src").join(TOOLCHAIN);
    if let Some(found) = library_in(&directory) {
        return Ok(found);
    }
    ask(Route::Rustup.program("rustc").arg("-vV")).map_err(|why| format!("no Rust {TOOLCHAIN} ({why})"))?;
    let state = home.join(format!("apt-{SUITE}"));
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = state.join(part);
        fs::create_dir_all(&part).map_err(at(&part))?;
    }
    let sources = state.join("sources.list");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb [signed-by={keys}] {} {SUITE} main\n", mirror()?);
    fs::write(&sources, line).map_err(at(&sources))?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        command
            .args(["-o", &option("Dir::Etc::sourcelist", &sources), "-o", "Dir::Etc::sourceparts=-"])
            .args(["-o", &option("Dir::State::lists", &state.join("lists"))])
            .args(["-o", &option("Dir::Cache", &state.join("cache")), "-o", "APT::Sandbox::User="])
            .current_dir(home);
        command
    };
    pass(apt("apt-get").args(["update", "-qq"]))?;
    let versions = ask(apt("apt-cache").args(["madison", "rust-src"]))?;
    let wanted = versions
        .lines()
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .find(|version| version.starts_with(&format!("{TOOLCHAIN}+")))
        .ok_or_else(|| format!("{SUITE} has no rust-src {TOOLCHAIN}"))?;
    pass(apt("apt-get").args(["download", "-qq", &format!("rust-src={wanted}")]))?;
    let package = fs::read_dir(home)
        .map_err(at(home))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rust-src_")))
        .ok_or("apt-get has downloaded nothing")?;
    fs::create_dir_all(&directory).map_err(at(&directory))?;
    pass(Command::new("dpkg").arg("-x").arg(&package).arg(&directory))?;
    let _ = fs::remove_file(package);
    library_in(&directory).ok_or_else(|| "rust-src does not contain the library".to_owned())
}

/// `usr/src/rustc-<version>/library` below a directory.
fn library_in(directory: &Path) -> Option<PathBuf> {
    let sources = fs::read_dir(directory.join("usr/src")).ok()?;
    let found = sources.flatten().map(|entry| entry.path().join("library"));
    found.into_iter().find(|library| library.join("Cargo.toml").is_file())
}

fn debian_source() -> Result<PathBuf, Failure> {
    let library = PathBuf::from("/usr/lib/rustlib/src/rust/library");
    if !library.join("Cargo.toml").is_file() || !Path::new("/usr/bin/cargo-clippy").is_file() {
        install(DEBIAN)?;
    }
    Ok(library)
}

/// The mirror of Debian's packages that this machine's apt knows.
fn mirror() -> Result<String, Failure> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path()));
    let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    mirror_in(&texts.join("\n")).ok_or_else(|| "apt knows no mirror of Debian's packages".to_owned())
}

/// Other people's packages and the security updates are on mirrors too, but not this suite.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let mut words = lines.flat_map(str::split_whitespace);
    let is_address = |word: &&str| word.starts_with("http:") || word.starts_with("https:");
    words.find(|word| is_address(word) && word.trim_end_matches('/').ends_with("/debian")).map(str::to_owned)
}

fn install(packages: &[&str]) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(format!("not installed: {}", packages.join(" ")));
    }
    // A failed update may still leave a usable list; the installation decides.
    let _ = pass(Command::new("apt-get").args(["update", "-qq"]));
    let mut install = Command::new("apt-get");
    install.args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages);
    pass(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_among_others_in_both_forms_of_lists() {
        let one_line = "# deb http://old/debian x main\ndeb [signed-by=/k] https://a.example/debian x main\n";
        assert_eq!(mirror_in(one_line).as_deref(), Some("https://a.example/debian"));
        let others =
            "deb https://node.example/ x main\ndeb http://c.example/debian-security x-security main\n";
        assert_eq!(mirror_in(others), None);
        let stanza = "Types: deb\nURIs: http://b.example/debian/\nSuites: x\n";
        assert_eq!(mirror_in(&format!("{others}{stanza}")).as_deref(), Some("http://b.example/debian/"));
    }
}
