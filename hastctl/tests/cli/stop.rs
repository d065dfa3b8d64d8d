//! `hastctl stop`: whom it ends, and whom it does not.

use std::fs::{self, File};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::program::{Node, Ran};

fn node() -> Node {
    Node::new("a", "pidfile /hast/hastd.pid\n")
}

/// A process that holds the lock on the pidfile, as hastd does: its standard input is the locked file.
pub(crate) fn locking(node: &Node, script: &str) -> Child {
    let pidfile = File::create(node.path("hastd.pid")).unwrap();
    pidfile.try_lock().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(node.path("")).stdin(pidfile);
    command.spawn().unwrap()
}

fn ended_by(child: &mut Child) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    None
}

#[test]
fn the_daemon_ends_and_is_waited_for() {
    let node = node();
    // It takes its time, and leaves a trace right before its end.
    let script = "trap 'sleep 0.3; touch ended; exit 0' TERM; touch ready; while :; do sleep 0.05; done";
    let mut daemon = locking(&node, script);
    fs::write(node.path("hastd.pid"), daemon.id().to_string()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !node.path("ready").exists() {
        assert!(Instant::now() < deadline, "the stand-in does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let ran = node.hastctl(&["stop"]);
    assert_eq!(ran, Ran { status: 0, stdout: String::new(), stderr: String::new() });
    assert!(node.path("ended").exists(), "hastctl did not wait");
    assert!(ended_by(&mut daemon).unwrap().success());
}

#[test]
fn debug_levels_tell_what_happens() {
    let node = node();
    let mut daemon = locking(&node, "exec sleep 60");
    fs::write(node.path("hastd.pid"), format!("{}\n", daemon.id())).unwrap();
    let ran = node.hastctl(&["stop", "-d"]);
    let pid = daemon.id();
    let stdout =
        format!("[DEBUG][1] Sent SIGTERM to hastd ({pid}).\n[DEBUG][1] hastd ({pid}) has stopped.\n");
    assert_eq!(ran, Ran { status: 0, stdout, stderr: String::new() });
    assert!(ended_by(&mut daemon).is_some());
}

#[test]
fn without_a_daemon_it_says_so() {
    let node = node();
    let pidfile = node.path("hastd.pid");
    let stderr = format!(
        "[ERROR] hastd is not running: nobody holds the lock on its pidfile {}.\n",
        pidfile.display()
    );
    let expected = Ran { status: 71, stdout: String::new(), stderr };
    assert_eq!(node.hastctl(&["stop"]), expected);
    // A pidfile that was left behind names somebody else by now.
    let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
    fs::write(&pidfile, bystander.id().to_string()).unwrap();
    assert_eq!(node.hastctl(&["stop"]), expected);
    assert_eq!(bystander.try_wait().unwrap(), None, "a bystander was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_pidfile_without_a_process_is_75() {
    for content in ["", "0", "-1", "1", "hastd"] {
        let node = node();
        let pidfile = File::create(node.path("hastd.pid")).unwrap();
        pidfile.try_lock().unwrap();
        fs::write(node.path("hastd.pid"), content).unwrap();
        let ran = node.hastctl(&["stop"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (75, ""), "{content:?}: {ran:?}");
        assert!(ran.stderr.contains("holds no process id"), "{content:?}: {ran:?}");
    }
}
