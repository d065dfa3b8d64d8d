//! What the log says about a connection: an administrator's first means when a pair is not what it should be.

use hast_tests::{Loopback, Outcome, Pair, SHORT, Setup, wait_until};

use crate::volume::Volume;

/// Where a text is in the log, from `after` on.
fn find(log: &str, text: &str, after: usize) -> usize {
    match log[after..].find(text) {
        Some(at) => after + at,
        None => panic!("{text:?} is not where it should be in\n{log}"),
    }
}

/// A connection comes to be, is lost, and comes back: the sentences, their levels and their order.
#[test]
fn a_connection_comes_and_goes() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let remote = pair.link.toward_b().conf();
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    pair.link.cut();
    pair.a.wait_status("disk0", "degraded")?;
    volume.scribble(1, 0, 1 << 20)?;
    pair.a.wait_log(&format!("[WARNING] [disk0] (primary) Disconnected from {remote}."))?;
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    let log = pair.a.log();
    let primary = |level: &str, text: &str| format!("[{level}] [disk0] (primary) {text}");
    let connected = primary("INFO", &format!("Connected to {remote}."));
    let first = find(&log, &connected, 0);
    // The end of either connection may be seen first: the sentence is the same.
    let lost = find(&log, &primary("ERROR", "Unable to receive reply header: "), first);
    let disconnected = find(&log, &primary("WARNING", &format!("Disconnected from {remote}.")), lost);
    let again = find(&log, &connected, disconnected);
    find(&log, &primary("INFO", "Synchronization started. 1.0MB to go."), again);
    assert_eq!(log.matches("Synchronization started").count(), 1);
    pair.finish()
}

/// Each new reason why there is no connection is a warning that says to whom; only its repetitions are not.
#[test]
fn a_split_brain_after_a_refused_connection_is_not_hidden() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4096)?;
    pair.link.cut();
    pair.a.wait_status("disk0", "degraded")?;
    volume.scribble(2, 0, 4096)?;
    pair.a.role("init", "disk0")?;
    pair.b.role("primary", "disk0")?;
    Volume::fresh(&pair.b, "disk0")?.scribble(3, 0, 4096)?;
    pair.b.stop()?;

    // a connects to b itself, whose host is up and whose hastd is down.
    let b = pair.addresses()[1].listen.clone();
    pair.setup.resources[0].remote_a = Some(b.clone());
    pair.setup.resources[0].remote_b = Some(pair.addresses()[0].listen.clone());
    pair.write_conf()?;
    pair.a.reload()?;
    pair.a.role("primary", "disk0")?;
    let refused = format!("[WARNING] [disk0] (primary) Unable to connect to {b}: Connection refused.\n");
    pair.a.wait_log(&refused)?;
    pair.a.wait_log(&refused.replace("[WARNING]", "[DEBUG][1]"))?;
    pair.b.start()?;
    pair.b.role("secondary", "disk0")?;
    pair.a.wait_log("[WARNING] [disk0] (primary) Split-brain condition!\n")?;
    assert_eq!(pair.a.log().matches(&refused).count(), 1);
    pair.finish()
}

/// A source address that this host does not have: the message names it.
#[test]
fn a_source_address_of_somebody_else_is_named() -> Outcome {
    let mut pair = Pair::blank(Setup::default())?;
    pair.addresses()[0].source = Some("tcp4://192.0.2.77".to_string());
    let remote = pair.addresses()[0].remote.clone();
    pair.write_conf()?;
    pair.create()?;
    pair.a.start()?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_log(&format!(
        "[WARNING] [disk0] (primary) Unable to connect to {remote}: unable to use the source address 192.0.2.77: \
         Cannot assign requested address.\n"
    ))?;
    pair.finish()
}

/// A connection that a reload ends is the one that was there, wherever the next one leads.
#[test]
fn a_reload_leaves_the_address_that_was_connected() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let was = pair.link.toward_b().conf();
    let nobody = Loopback::reserve()?;
    for to in [nobody.conf(), "none".to_string()] {
        let before = pair.a.log().matches("Disconnected from").count();
        pair.setup.resources[0].remote_a = Some(to.clone());
        pair.write_conf()?;
        pair.a.reload()?;
        wait_until("the connection to end", SHORT, || {
            Ok(pair.a.log().matches("Disconnected from").count() > before)
        })?;
        pair.setup.resources[0].remote_a = None;
        pair.write_conf()?;
        pair.a.reload()?;
        pair.a.wait_in_step("disk0")?;
    }
    let left = format!("[WARNING] [disk0] (primary) Disconnected from {was}.");
    assert_eq!(pair.a.log().matches(&left).count(), 2);
    assert_eq!(pair.a.log().matches("Disconnected from").count(), 2);
    pair.finish()
}
