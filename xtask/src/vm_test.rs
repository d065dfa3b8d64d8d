//! `cargo xtask vm-test`: the block device over a primary's export (hast.conf(5), `device`), under a kernel that can
//! make one, by its NBD and by its ublk. Boots Debian's kernel for cloud machines in qemu, with nothing but our programs, busybox and mkfs in
//! memory, and runs `vm_test/guest.sh` there as the first process. CI does not: emulated, it takes minutes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hast_tests::tools::find;

use crate::tools;

/// What the machine runs.
const GUEST: &str = include_str!("vm_test/guest.sh");
/// Debian's names for kernels for virtual machines; of the first there is, the newest is taken. Before Linux 6.12 they
/// have no ublk: Debian 12 has both.
const KERNELS: &[&str] = &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];
/// The modules that the machine needs.
const MODULES: &[&str] = &["kernel/drivers/block/nbd.ko", "kernel/drivers/block/ublk_drv.ko"];
/// Debian's busybox that needs no libraries.
const BUSYBOX: &str = "busybox-static";
/// Programs of this system that the machine needs besides.
const PROGRAMS: &[&str] = &["mkfs.ext4", "dd", "blkdiscard"];
/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(2400);

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    if let Some(argument) = parser.next()? {
        return Err(argument.unexpected());
    }
    Ok(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask vm-test: {why}");
            ExitCode::FAILURE
        }
    })
}

fn run() -> Result<(), String> {
    tools::enter_root()?;
    let qemu = find("qemu-system-x86_64")
        .ok_or("qemu-system-x86_64 is not installed (Debian: apt-get install qemu-system-x86)")?;
    pass(tools::cargo().args(["build", "--quiet", "-p", "hastd", "-p", "hastctl"]))?;
    let home = std::path::absolute(tools::target()).map_err(|error| error.to_string())?.join("vm-test");
    fs::create_dir_all(&home).map_err(at(&home))?;
    let kernel = unpacked(&home, &newest_kernel()?)?;
    let busybox = unpacked(&home, BUSYBOX)?.join("bin/busybox");
    let image = initramfs(&home, &kernel, &busybox)?;
    boot(&qemu, &file_in(&kernel.join("boot"), "vmlinuz-")?, &image)
}

/// The package that the newest kernel is in.
fn newest_kernel() -> Result<String, String> {
    for kernel in KERNELS {
        let text = ask(Command::new("apt-cache").args(["depends", kernel])).unwrap_or_default();
        if let Some(package) = text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")) {
            return Ok(package.to_owned());
        }
    }
    Err(format!("apt-cache knows none of {} (apt-get update)", KERNELS.join(", ")))
}

/// Where the contents of a package are, which is not installed.
fn unpacked(home: &Path, package: &str) -> Result<PathBuf, String> {
    let place = home.join(package);
    if place.exists() {
        return Ok(place);
    }
    let unfinished = home.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(at(&unfinished))?;
    }
    fs::create_dir_all(&unfinished).map_err(at(&unfinished))?;
    pass(Command::new("apt-get").args(["download", "-q", package]).current_dir(&unfinished))?;
    let archive = file_in(&unfinished, package)?;
    let contents = unfinished.join("contents");
    pass(Command::new("dpkg-deb").arg("-x").args([&archive, &contents]))?;
    fs::rename(&contents, &place).map_err(at(&place))?;
    Ok(place)
}

/// The file in a directory whose name begins so.
fn file_in(directory: &Path, prefix: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    let mut found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let file = found.next().map(|entry| entry.path());
    file.ok_or_else(|| format!("no file {prefix}... in {}", directory.display()))
}

/// Packs what the machine has: all of it is in memory.
fn initramfs(home: &Path, kernel: &Path, busybox: &Path) -> Result<PathBuf, String> {
    let root = home.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(at(&root))?;
    }
    for directory in ["bin", "sbin", "proc", "sys", "dev", "lib/modules"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).map_err(at(&directory))?;
    }
    copy(busybox, &root.join("bin/busybox"))?;
    for applet in ask(Command::new(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        let link = root.join("bin").join(applet);
        std::os::unix::fs::symlink("busybox", &link).map_err(at(&link))?;
    }
    let built = tools::target().join("debug");
    let ours = ["hastd", "hastctl"].map(|name| built.join(name));
    let theirs = PROGRAMS.iter().map(|name| find(name).ok_or(format!("{name} is not installed")));
    for program in ours.into_iter().map(Ok).chain(theirs) {
        let program = program?;
        let name = program.file_name().ok_or("a program without a name")?;
        // busybox may have an applet of the name.
        let place = root.join("sbin").join(name);
        copy(&program, &place)?;
        libraries(&program, &root)?;
        // Debugging information would only fill the memory.
        if name == "hastd" || name == "hastctl" {
            let _ = Command::new("strip").arg(&place).status();
        }
    }
    let modules = file_in(&kernel.join("lib/modules"), "")?;
    let version = modules.file_name().ok_or("modules of no version")?;
    let place = root.join("lib/modules").join(version);
    for file in ["modules.builtin", "modules.order"] {
        copy(&modules.join(file), &place.join(file))?;
    }
    for file in MODULES {
        module(&modules.join(file), &place.join(file), busybox)?;
    }
    let init = root.join("init");
    fs::write(&init, GUEST).map_err(at(&init))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(at(&init))?;
    let image = home.join("initramfs");
    let pack = "find . | \"$1\" cpio -o -H newc >\"$2\"";
    pass(Command::new("sh").args(["-c", pack, "sh"]).args([busybox, &image]).current_dir(&root))?;
    Ok(image)
}

/// Copies the libraries of a program to where it looks for them.
fn libraries(program: &Path, root: &Path) -> Result<(), String> {
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", and the loader without an arrow.
    let text = ask(Command::new("ldd").arg(program))?;
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        if !place.exists() {
            copy(Path::new(library), &place)?;
        }
    }
    Ok(())
}

/// Copies a module as the machine can load it: newer kernels bring them compressed.
fn module(from: &Path, to: &Path, busybox: &Path) -> Result<(), String> {
    if from.exists() {
        return copy(from, to);
    }
    let from = PathBuf::from(format!("{}.xz", from.display()));
    copy(&from, to)?;
    let unpack = "\"$1\" xz -dc \"$2\" >\"$3\"";
    pass(Command::new("sh").args(["-c", unpack, "sh"]).args([busybox, &from, to]))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).map_err(at(directory))?;
    }
    fs::copy(from, to).map(drop).map_err(at(from))
}

/// Runs the machine to its end and tells what it says.
fn boot(qemu: &Path, kernel: &Path, image: &Path) -> Result<(), String> {
    let mut command = Command::new(qemu);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536"]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nic", "none"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    command.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    println!("$ {command:?}");
    let machine = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(machine.map_err(|error| format!("qemu: {error}"))?);
    let output = machine.0.stdout.take().ok_or("qemu has no output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    let (mut passed, mut failed, mut done) = (0_usize, Vec::new(), false);
    loop {
        let line = match lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("the machine has not come to an end in {} s", PATIENCE.as_secs()));
            }
        };
        println!("{:4} s  {line}", began.elapsed().as_secs());
        if line.starts_with("PASS ") {
            passed = passed.saturating_add(1);
        } else if let Some(what) = line.strip_prefix("FAIL ") {
            failed.push(what.to_owned());
        }
        done |= line == "DONE";
    }
    match (failed.as_slice(), done) {
        ([], true) => {
            println!("{passed} checks passed in {} s.", began.elapsed().as_secs());
            Ok(())
        }
        ([], false) => Err("the machine ended early".to_owned()),
        (failed, _) => Err(format!("failed: {}", failed.join(", "))),
    }
}

/// Ends with this program, or before.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pass(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

fn ask(command: &mut Command) -> Result<String, String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}
