//! `role -n` says what would happen and changes nothing; leaving the primary role names those who use the device.

use std::io::Write;

use hast_tests::{LONG, Node, Outcome, Pair, Run, Setup, wait_until};

use crate::volume::Volume;

fn ran(run: &Run) -> (i32, &str, &str) {
    (run.code, run.stdout.as_str(), run.stderr.as_str())
}

fn foresee(node: &Node, arguments: &[&str]) -> Result<Run, hast_tests::Failure> {
    node.hastctl(&[&["role", "-n"], arguments].concat())
}

#[test]
fn nothing_changes() -> Outcome {
    let pair = Pair::started(Setup::with("exec @hook@"))?;
    let a = foresee(&pair.a, &["primary", "disk0"])?;
    assert_eq!(ran(&a), (0, "disk0: role would change from init to primary\n", ""));
    let a = foresee(&pair.a, &["init", "all"])?;
    assert_eq!(ran(&a), (0, "disk0: role is init already: nothing would change\n", ""));
    let a = foresee(&pair.a, &["primary", "nosuch", "disk0"])?;
    let expected = "nosuch: there is no such resource\ndisk0: role would change from init to primary\n";
    assert_eq!(ran(&a), (1, expected, ""));
    assert_eq!(pair.a.value("disk0", "role")?.as_deref(), Some("init"));
    assert!(pair.a.hook_lines().is_empty());

    // A node that an original has perhaps left behind would become primary all the same.
    let provider = pair.a.provider("disk0");
    let mut metadata = hast_tests::disk::metadata(&provider)?;
    metadata.extension.generation = 1;
    metadata.extension.possibly_behind = true;
    std::fs::OpenOptions::new().write(true).open(&provider)?.write_all(&metadata.encode())?;
    let a = foresee(&pair.a, &["primary", "disk0"])?;
    let expected = "disk0: role would change from init to primary\ndisk0: the data here may be out of date: the other \
                    node's original hastd does not tell\n";
    assert_eq!(ran(&a), (0, expected, ""));

    // What role -n says of a provider that cannot be used is what the change would say.
    std::fs::write(pair.a.provider("disk0"), [0; 8192])?;
    let a = foresee(&pair.a, &["primary", "disk0"])?;
    assert_eq!(a.code, 66, "{a:?}");
    assert!(a.stdout.starts_with("disk0: would be refused: Unable to read metadata from "), "{a:?}");
    assert_eq!(pair.a.hastctl(&["role", "primary", "disk0"])?.code, 66);
    pair.finish()
}

#[test]
fn users_of_the_device_are_named() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4096)?;
    let user = if cfg!(target_os = "linux") {
        let pid = std::process::id();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
        format!("NBD client {pid} ({})", name.trim_end())
    } else {
        "an NBD client".to_owned()
    };
    for role in ["secondary", "init"] {
        let a = foresee(&pair.a, &[role, "disk0"])?;
        let expected = format!("disk0: role would change from primary to {role}\ndisk0: in use: {user}\n");
        assert_eq!(ran(&a), (0, expected.as_str(), ""));
    }
    volume.scribble(2, 4096, 4096)?;
    let b = foresee(&pair.b, &["primary", "disk0"])?;
    let expected = "disk0: would be refused: the other node is primary and connected, unless it leaves its role in time\n";
    assert_eq!(ran(&b), (70, expected, ""));
    let b = foresee(&pair.b, &["-f", "primary", "disk0"])?;
    let expected = "disk0: role would change from secondary to primary\n\
                    disk0: forced: the other node is primary and connected: both would be\n";
    assert_eq!(ran(&b), (0, expected, ""));

    // It goes ahead, and standard output is the original's.
    let a = pair.a.hastctl(&["role", "secondary", "disk0"])?;
    let warning = format!("[WARNING] [disk0] The device is in use: {user}.\n");
    assert_eq!(ran(&a), (0, "", warning.as_str()));
    assert_eq!(pair.a.value("disk0", "role")?.as_deref(), Some("secondary"));
    // Nobody uses a device that is not there.
    let a = pair.a.hastctl(&["role", "init", "disk0"])?;
    assert_eq!(ran(&a), (0, "", ""));
    pair.finish()
}

/// Refused for the same reason and with the same number as the change itself.
#[test]
fn a_node_that_is_behind() -> Outcome {
    let pair = Pair::up(Setup { provider: 64 << 20, ..Setup::default() })?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    pair.link.cut();
    volume.scribble(1, 0, 48 << 20)?;
    let (before, _) = pair.link.bytes_from_a();
    pair.link.restore();
    wait_until("the synchronisation to be under way", LONG, || {
        Ok(pair.link.bytes_from_a().0 > before + (2 << 20))
    })?;
    let b = foresee(&pair.b, &["primary", "disk0"])?;
    pair.link.cut();
    assert_eq!(b.code, 70, "{b:?}");
    assert!(b.stdout.starts_with("disk0: would be refused: the data here is out of date since "), "{b:?}");
    assert!(b.stdout.ends_with(" has the newer data\n"), "{b:?}");
    let refused = pair.b.hastctl(&["role", "primary", "disk0"])?;
    assert_eq!((refused.code, refused.stdout.as_str()), (70, ""));
    // Without a worker the provider says it.
    pair.b.role("init", "disk0")?;
    assert_eq!(foresee(&pair.b, &["primary", "disk0"])?.code, 70);
    let forced = foresee(&pair.b, &["-f", "primary", "disk0"])?;
    assert_eq!(forced.code, 0);
    let expected =
        "disk0: role would change from init to primary\ndisk0: forced: the data here is out of date since ";
    assert!(forced.stdout.starts_with(expected), "{forced:?}");
    assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("init"));
    pair.finish()
}
