//! SIGHUP: what hast.conf(5) says about a changed file.

use std::net::TcpStream;

use hast_tests::{Loopback, Outcome, Pair, Resource, SHORT, Setup, wait_for, wait_until};

use crate::volume::Volume;

#[test]
fn a_broken_file_changes_nothing() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let worker = pair.a.worker("disk0")?;
    pair.a.wait_at_rest("disk0")?;
    let list = pair.a.ctl(&["list"])?;
    std::fs::write(pair.conf_path(), "resource disk0 {\n    local\n")?;
    pair.a.signal(nix::sys::signal::Signal::SIGHUP)?;
    pair.a.wait_log("Configuration not reloaded")?;
    pair.a.wait_log("hast.conf:")?;
    pair.write_conf()?;
    assert_eq!(pair.a.worker("disk0")?, worker);
    assert_eq!(pair.a.ctl(&["list"])?, list);
    volume.scribble(1, 0, 4096)?;
    pair.finish()
}

#[test]
fn resources_come_and_go() -> Outcome {
    let mut pair = Pair::up(Setup::with("exec @hook@"))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let worker = pair.a.worker("disk0")?;
    // A new one appears in role init, after the others.
    pair.setup.resources.push(Resource::with("disk1", "exec @hook@"));
    pair.write_conf()?;
    for node in [&pair.a, &pair.b] {
        hast_tests::disk::make(&node.provider("disk1"), pair.setup.provider)?;
        node.ctl(&["create", "-e", "65536", "disk1"])?;
        node.reload()?;
    }
    let status = pair.a.ctl(&["status"])?;
    let names: Vec<&str> = status.lines().skip(1).filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(names, ["disk0", "disk1"]);
    assert_eq!(pair.a.value("disk1", "role")?.as_deref(), Some("init"));
    pair.b.role("secondary", "disk1")?;
    pair.a.role("primary", "disk1")?;
    pair.a.wait_in_step("disk1")?;
    // A removed one goes to role init and disappears with its device.
    pair.setup.resources.pop();
    pair.write_conf()?;
    pair.a.reload()?;
    pair.b.reload()?;
    wait_until("disk1's device to go", SHORT, || Ok(!pair.a.socket("disk1").exists()))?;
    assert_eq!(pair.a.hastctl(&["status", "disk1"])?.code, 1);
    wait_until("the role hook", SHORT, || {
        Ok(pair.a.hook_lines().iter().any(|line| line == "role disk1 primary init"))
    })?;
    assert_eq!(pair.a.worker("disk0")?, worker, "disk0 was left alone throughout");
    volume.scribble(1, 0, 4096)?;
    pair.finish()
}

/// Replication, checksum, compression, timeout, exec and metaflush apply to the running worker: the
/// device and its clients stay.
#[test]
fn a_running_primary_takes_new_settings() -> Outcome {
    let mut pair = Pair::up(Setup::with("replication memsync"))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    let worker = pair.a.worker("disk0")?;
    let settings =
        "replication fullsync\nchecksum sha256\ncompression lzf\ntimeout 7\nexec @hook@\nmetaflush off";
    pair.setup.resources[0].statements = settings.to_string();
    pair.write_conf()?;
    pair.a.reload()?;
    wait_until("the new mode", SHORT, || {
        Ok(pair.a.value("disk0", "replication")?.as_deref() == Some("fullsync"))
    })?;
    assert_eq!(pair.a.worker("disk0")?, worker);
    volume.scribble(2, 1 << 20, 1 << 20)?;
    volume.write(2 << 20, &hast_tests::disk::text(1, 1 << 20))?;
    volume.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    // The new mode and hook hold across reconnects.
    pair.link.cut();
    volume.scribble(3, 0, 4096)?;
    pair.a.wait_status("disk0", "degraded")?;
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    wait_until("the hook", SHORT, || Ok(pair.a.hook_lines().iter().any(|line| line == "connect disk0")))?;
    assert_eq!(pair.a.value("disk0", "replication")?.as_deref(), Some("fullsync"));
    assert_eq!(pair.a.worker("disk0")?, worker);
    volume.verify()?;
    pair.finish()
}

/// Another remote address closes the connections and connects there; the device stays.
#[test]
fn a_running_primary_moves_to_another_remote() -> Outcome {
    let mut pair = Pair::up(Setup::with("exec @hook@"))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    let worker = pair.a.worker("disk0")?;
    let nobody = Loopback::reserve()?;
    pair.setup.resources[0].remote_a = Some(nobody.conf());
    pair.write_conf()?;
    pair.a.reload()?;
    pair.a.wait_status("disk0", "degraded")?;
    assert_eq!(pair.a.value("disk0", "remoteaddr")?.as_deref(), Some(nobody.conf().as_str()));
    wait_until("the hook", SHORT, || Ok(pair.a.hook_lines().iter().any(|line| line == "disconnect disk0")))?;
    volume.scribble(2, 1 << 20, 1 << 20)?;
    pair.setup.resources[0].remote_a = None;
    pair.write_conf()?;
    pair.a.reload()?;
    pair.a.wait_in_step("disk0")?;
    assert_eq!(pair.a.worker("disk0")?, worker, "one worker all the time");
    volume.flush()?;
    volume.verify()?;
    volume.verify_provider(&pair.b, "disk0")?;
    // And to no remote at all.
    pair.setup.resources[0].remote_a = Some("none".to_string());
    pair.write_conf()?;
    pair.a.reload()?;
    pair.a.wait_status("disk0", "degraded")?;
    assert_eq!(pair.a.value("disk0", "remoteaddr")?.as_deref(), Some("none"));
    volume.scribble(3, 0, 4096)?;
    pair.finish()
}

/// Another provider name or local path restarts a primary: to init and back.
#[test]
fn a_primary_with_another_name_or_disk_is_restarted() -> Outcome {
    let mut pair = Pair::up(Setup::with("exec @hook@"))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    let worker = pair.a.worker("disk0")?;
    pair.setup.resources[0].on_a = "name renamed".to_string();
    pair.write_conf()?;
    pair.a.reload()?;
    let other =
        wait_for("another worker", SHORT, || Ok(pair.a.worker("disk0")?.filter(|pid| Some(*pid) != worker)))?;
    pair.a.wait_in_step("disk0")?;
    assert_eq!(pair.a.value("disk0", "role")?.as_deref(), Some("primary"));
    assert!(!pair.a.socket("disk0").exists());
    let volume = volume.moved_to(&pair.a, "renamed")?;
    volume.verify()?;
    // The hooks run side by side: either may write its line first.
    wait_until("two more role hooks", SHORT, || {
        let lines = pair.a.hook_lines();
        let roles = |event: &str| lines.iter().filter(|line| *line == event).count();
        Ok(roles("role disk0 primary init") == 1 && roles("role disk0 init primary") == 2)
    })?;
    // The same disk at another place.
    let elsewhere = pair.a.directory().join("elsewhere.img");
    std::fs::hard_link(pair.a.provider("disk0"), &elsewhere)?;
    pair.setup.resources[0].local_a = Some(elsewhere.clone());
    pair.write_conf()?;
    pair.a.reload()?;
    wait_for("another worker", SHORT, || Ok(pair.a.worker("disk0")?.filter(|pid| *pid != other)))?;
    pair.a.wait_in_step("disk0")?;
    assert_eq!(pair.a.value("disk0", "localpath")?.as_deref(), elsewhere.to_str());
    volume.moved_to(&pair.a, "renamed")?.verify()?;
    pair.finish()
}

/// A secondary is restarted on any change, and the primary finds it again.
#[test]
fn a_secondary_is_restarted() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    let worker = pair.b.worker("disk0")?;
    pair.setup.resources[0].statements = "checksum crc32\nexec @hook@".to_string();
    pair.write_conf()?;
    pair.b.reload()?;
    wait_until("the role to be secondary again", SHORT, || {
        Ok(pair.b.value("disk0", "role")?.as_deref() == Some("secondary"))
    })?;
    wait_for("another worker", hast_tests::LONG, || {
        Ok(pair.b.worker("disk0")?.filter(|pid| Some(*pid) != worker))
    })?;
    pair.a.wait_in_step("disk0")?;
    volume.scribble(2, 1 << 20, 1 << 20)?;
    volume.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// Listen sockets: unchanged ones stay open, new ones open, gone ones close; the control socket moves.
#[test]
fn sockets_follow_the_file() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    let extra = Loopback::reserve()?;
    let original = pair.addresses()[0].listen.clone();
    let both = format!("{original}\n    listen {}", extra.conf());
    pair.addresses()[0].listen = both;
    pair.write_conf()?;
    pair.a.reload()?;
    wait_until("the new listen socket", SHORT, || Ok(TcpStream::connect(extra.hast()).is_ok()))?;
    TcpStream::connect(pair.a_listens())?;
    pair.addresses()[0].listen = original;
    pair.write_conf()?;
    pair.a.reload()?;
    wait_until("it to close", SHORT, || Ok(TcpStream::connect(extra.hast()).is_err()))?;
    TcpStream::connect(pair.a_listens())?;
    // The control socket: hastctl finds it where the file says.
    let moved = pair.conf().replace("a/control", "a/moved");
    std::fs::write(pair.conf_path(), moved)?;
    pair.a.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait_until("the control socket to move", SHORT, || Ok(pair.a.hastctl(&["status"])?.code == 0))?;
    assert!(!pair.a.control().exists(), "the old one is gone");
    assert_eq!(pair.a.status("disk0")?, "complete");
    volume.scribble(1, 0, 4096)?;
    pair.write_conf()?;
    pair.a.signal(nix::sys::signal::Signal::SIGHUP)?;
    wait_until("the control socket to move back", SHORT, || Ok(pair.a.hastctl(&["status"])?.code == 0))?;
    pair.finish()
}
