//! What a program that logs to the terminal writes where. This test runs itself: once to look, once for each
//! debug level to be looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, exit};

use hast_log::{Sink, scope, set_process_prefix};

const LEVEL: &str = "HAST_LOG_TEST_LEVEL";
const ABORT: &str = "HAST_LOG_TEST_ABORT";

fn main() {
    match env::var(LEVEL) {
        Ok(level) => speak(level.parse().unwrap()),
        Err(_) => look(),
    }
}

fn speak(debug: u8) -> ! {
    hast_log::init(Sink::Terminal, debug);
    log::error!("Unable to open {}: {}.", "/x", "No such file or directory");
    set_process_prefix(Some("disk0"), Some("primary"));
    log::warn!("Disconnected.");
    {
        let _scope = scope(Some("disk1"), None);
        log::info!("Role changed.");
    }
    log::debug!("one");
    log::trace!("two");
    log::error!(target: "polling", "nobody asked");
    hast_log::log_panics();
    let _ = std::thread::spawn(|| panic!("wrong assumption")).join();
    hast_log::critical(format_args!("last words"));
    if env::var_os(ABORT).is_some() {
        hast_log::abort_on_panic();
        let _ = std::thread::spawn(|| panic!("no way back")).join();
    }
    exit(0)
}

fn look() {
    for (level, debug) in [
        ("0", ""),
        ("1", "[DEBUG][1] [disk0] (primary) one\n"),
        ("2", "[DEBUG][1] [disk0] (primary) one\n[DEBUG][2] [disk0] (primary) two\n"),
        ("9", "[DEBUG][1] [disk0] (primary) one\n[DEBUG][2] [disk0] (primary) two\n"),
    ] {
        let output = Command::new(env::current_exe().unwrap()).env(LEVEL, level).output().unwrap();
        assert!(output.status.success());
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout, format!("[INFO] [disk1] Role changed.\n{debug}"), "level {level}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "[ERROR] Unable to open /x: No such file or directory.",
                "[WARNING] [disk0] (primary) Disconnected.",
            ]
        );
        assert!(
            lines[2].starts_with("[CRIT] [disk0] (primary) ") && lines[2].contains("terminal.rs"),
            "{stderr}"
        );
        assert_eq!(lines[3..], ["wrong assumption", "[CRIT] [disk0] (primary) last words"]);
    }
    let output = Command::new(env::current_exe().unwrap()).env(LEVEL, "0").env(ABORT, "1").output().unwrap();
    assert_eq!(output.status.signal(), Some(6), "a panic of any thread is the end");
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("\nno way back\n"));
}
