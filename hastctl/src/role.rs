//! Before a role changes: what would come of it (`role -n`), and who still uses a device that is about to go.
//!
//! Both ask for a verbose status and change nothing, so that an original hastd can be asked too.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use hast_conf::Config;
use hast_format::extension::Utc;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::control::{self, Entry, Facts, Reply, Request, ResourceStatus};
use hast_net::errno::Errno;
use hast_provider::Provider;

use crate::human::printable;
use crate::users::{DEVICES, users};
use crate::{client, exit};

/// How long hastd may take to tell who uses a device: a change of role does not wait for more.
const PATIENCE: Duration = Duration::from_secs(2);

/// What would become of `role`, a line for each thing there is to say, and the exit status that tells: that of
/// the first resource that would be refused.
pub(crate) fn foresee(config: &Config, entries: &[Entry], role: Role, force: bool) -> (String, u8) {
    let mut text = String::new();
    let mut outcome = 0;
    for entry in entries {
        let name = printable(entry.name());
        let (lines, status) = match entry {
            Entry::Error { error: control::ERROR_NO_ENTRY, .. } => {
                (vec!["there is no such resource".to_owned()], 1)
            }
            Entry::Error { error, .. } => (
                vec![format!("hastd cannot tell (error {error})")],
                u8::try_from(error & 0xff).unwrap_or(u8::MAX).max(1),
            ),
            Entry::RoleWas { .. } => (vec!["hastd does not tell".to_owned()], exit::SOFTWARE),
            Entry::Status { name, status } => Prospect { config, name, status, force }.of(role),
        };
        for line in lines {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {line}");
        }
        if outcome == 0 {
            outcome = status;
        }
    }
    (text, outcome)
}

/// One resource whose role is to change.
struct Prospect<'a> {
    config: &'a Config,
    name: &'a str,
    status: &'a ResourceStatus,
    force: bool,
}

impl Prospect<'_> {
    fn of(&self, role: Role) -> (Vec<String>, u8) {
        let now = printable(&self.status.role);
        if now == role.as_str() {
            return (vec![format!("role is {now} already: nothing would change")], 0);
        }
        let would = format!("role would change from {now} to {role}");
        if role == Role::Primary {
            return self.of_promotion(would);
        }
        let mut lines = vec![would];
        if now == Role::Primary.as_str() {
            lines.extend(users(self.status).into_iter().map(|user| format!("in use: {user}")));
        }
        (lines, 0)
    }

    fn of_promotion(&self, would: String) -> (Vec<String>, u8) {
        let facts = match &self.status.facts {
            Some(facts) => facts.clone(),
            // No worker that could tell, nor a provider that could be read; or an original hastd.
            None => match self.read_provider() {
                Ok(metadata) => Facts {
                    inconsistent_since: metadata.extension.mark.as_ref().map(|mark| mark.since),
                    inconsistent_by: metadata.extension.mark.map(|mark| mark.by).unwrap_or_default(),
                    possibly_behind: metadata.extension.possibly_behind,
                    ..Facts::default()
                },
                Err(why) => return (vec![format!("would be refused: {why}")], exit::NOINPUT),
            },
        };
        let refused = |why: &str| {
            let status = u8::try_from(Errno::ESTALE.to_wire()).unwrap_or(u8::MAX);
            (vec![format!("would be refused: {why}")], status)
        };
        let mut lines = Vec::new();
        if let Some(since) = facts.inconsistent_since {
            let by = if facts.inconsistent_by.is_empty() { "the other node" } else { &facts.inconsistent_by };
            let behind = format!(
                "the data here is out of date since {}; {} has the newer data",
                Utc(since),
                printable(by)
            );
            if !self.force {
                return refused(&behind);
            }
            lines.push(format!("forced: {behind}"));
        } else if facts.possibly_behind {
            lines.push(
                "the data here may be out of date: the other node's original hastd does not tell".to_owned(),
            );
        }
        if self.status.worker.as_ref().is_some_and(|worker| worker.complete) {
            if !self.force {
                return refused("the other node is primary and connected, unless it leaves its role in time");
            }
            lines.push("forced: the other node is primary and connected: both would be".to_owned());
        }
        lines.insert(0, would);
        (lines, 0)
    }

    fn read_provider(&self) -> Result<Metadata, String> {
        let Some(resource) = self.config.resources.iter().find(|resource| resource.name == self.name) else {
            return Err("the configuration here does not have it".to_owned());
        };
        let provider =
            Provider::open(Path::new(&resource.localpath), false).map_err(|error| error.to_string())?;
        let metadata = provider.read_metadata_of(&resource.name).map_err(|error| error.to_string())?;
        match Layout::open(&metadata, provider.mediasize(), provider.sectorsize()) {
            Ok(_) => Ok(metadata),
            Err(error) => Err(format!("metadata on {} is unusable: {error}.", provider.path().display())),
        }
    }
}

/// Warns of those who use a device that is about to go. hastd is asked only if there is a device to be used: an
/// NBD socket, or a name in [`DEVICES`]. What it does not say, or not in time, is not waited for.
pub(crate) fn warn_of_users(config: &Config, names: &[String]) {
    let all = names.first().is_some_and(|name| name == control::ALL);
    let is_there = |directory: &Path, resource: &hast_conf::Resource| {
        hast_conf::nbd_socket_path(directory, &resource.provname).is_ok_and(|path| path.exists())
    };
    let has_device = |resource: &&hast_conf::Resource| {
        config.nbd_directory().is_some_and(|directory| is_there(directory, resource))
            || Path::new(DEVICES).join(&resource.provname).exists()
    };
    let wanted = config.resources.iter().filter(|resource| all || names.contains(&resource.name));
    let asked: Vec<String> = wanted.filter(has_device).map(|resource| resource.name.clone()).collect();
    if asked.is_empty() {
        return;
    }
    let request = Request { verbose: true, ..Request::new(control::Command::Status, asked) };
    let Ok(Reply::Entries(entries)) = client::ask_within(&config.control, &request, PATIENCE) else {
        return; // what is wrong the change of role itself will say
    };
    for entry in entries {
        let Entry::Status { name, status } = entry else { continue };
        let _scope = hast_log::scope(Some(&name), None);
        if status.role == Role::Primary.as_str() {
            for user in users(&status) {
                log::warn!("The device is in use: {user}.");
            }
        }
    }
}
