//! Four hosts, four addresses: each host owns one and is the backup of the other three.

use std::process::Child;

use hast_tests::{Failure, LONG, Outcome, wait_until};

use super::lab::{Host, Lab};

const HOSTS: usize = 4;

struct Four {
    hosts: Vec<Host>,
    running: Vec<Vec<Child>>,
    lab: Lab,
}

fn address(of: usize) -> String {
    format!("10.77.0.{}", 101 + of)
}

impl Four {
    fn new() -> Result<Option<Four>, Failure> {
        let Some(lab) = Lab::new(&["ucarp"])? else { return Ok(None) };
        std::fs::write(lab.directory().join("password"), "of the lab\n")?;
        let mut four = Four { hosts: Vec::new(), running: Vec::new(), lab };
        for n in 0..HOSTS {
            let mut host = four.lab.host(&format!("host{n}"), u8::try_from(n + 1)?)?;
            let state = host.directory().join("vip").display().to_string();
            host.set("HAST_VIP_STATE", &state);
            four.hosts.push(host);
            four.running.push(Vec::new());
            four.announce(n)?;
        }
        Ok(Some(four))
    }

    /// Starts ucarp for all addresses on a host. The last host does without hast-ucarp, like a system that has
    /// nothing but ucarp and the two scripts.
    fn announce(&mut self, n: usize) -> Result<(), Failure> {
        let password = self.lab.directory().join("password").display().to_string();
        let host = &self.hosts[n];
        let own = host.address();
        for owner in 0..HOSTS {
            let (shared, vhid) = (address(owner), (owner + 1).to_string());
            let skew = (((n + HOSTS - owner) % HOSTS) * 60).to_string();
            let child = if n + 1 < HOSTS {
                let shared = format!("{shared}/24");
                let arguments =
                    ["-i", "eth0", "-s", &own, "-a", &shared, "-v", &vhid, "-p", &password, "-k", &skew];
                host.spawn("ucarp.log", "hast-ucarp", &arguments)?
            } else {
                let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/ucarp");
                let (up, down) = (format!("{scripts}/vip-up"), format!("{scripts}/vip-down"));
                let arguments = [
                    "-i", "eth0", "-s", &own, "-a", &shared, "-v", &vhid, "-o", &password, "-k", &skew, "-b",
                    "1", "-P", "-z", "-u", &up, "-d", &down, "-x", "24",
                ];
                host.spawn("ucarp.log", "ucarp", &arguments)?
            };
            self.running[n].push(child);
        }
        Ok(())
    }

    /// Waits until every address is on the host that comes first among those that are up, and on no other.
    fn wait_places(&self, down: &[usize]) -> Outcome {
        let mut seen = String::new();
        let settled = wait_until("the addresses to be where the priorities say", LONG, || {
            let (mut right, mut places) = (true, String::new());
            for owner in 0..HOSTS {
                let first = (0..HOSTS).map(|rank| (owner + rank) % HOSTS).find(|host| !down.contains(host));
                for (n, host) in self.hosts.iter().enumerate() {
                    let has = host.is_running() && host.has_address(&address(owner))?;
                    if has {
                        places.push_str(&format!(" {}@{}", address(owner), host.name()));
                    }
                    right &= has == (first == Some(n));
                }
            }
            seen = places;
            Ok(right)
        });
        settled.map_err(|why| Failure::new(format!("{why}; down: {down:?}; they are{seen}")))
    }

    fn kill(&mut self, n: usize) -> Outcome {
        self.hosts[n].kill()?;
        for mut child in self.running[n].drain(..) {
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Four {
    fn drop(&mut self) {
        for n in 0..self.hosts.len() {
            let _ = self.kill(n);
        }
    }
}

#[test]
fn any_one_host_dies_and_returns() -> Outcome {
    let Some(mut four) = Four::new()? else { return Ok(()) };
    four.wait_places(&[])?;
    for n in 0..HOSTS {
        four.kill(n)?;
        four.wait_places(&[n])?;
        four.lab.boot(&mut four.hosts[n])?;
        four.announce(n)?;
        four.wait_places(&[])?;
    }
    Ok(())
}

#[test]
fn any_two_hosts_are_cut_off_and_return() -> Outcome {
    let Some(four) = Four::new()? else { return Ok(()) };
    four.wait_places(&[])?;
    for first in 0..HOSTS {
        for second in first + 1..HOSTS {
            let pair = [first, second];
            for n in pair {
                four.lab.set_link(&four.hosts[n], false)?;
            }
            four.wait_places(&pair)?;
            for n in pair {
                four.lab.set_link(&four.hosts[n], true)?;
            }
            four.wait_places(&[])?;
        }
    }
    Ok(())
}
