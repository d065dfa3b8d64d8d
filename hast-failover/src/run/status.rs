//! What a group is at this moment, for people and for programs.

use crate::config::Content;
use crate::system::{Platform, System};

use super::Run;

/// Whether a group works here, from good to bad.
mod state {
    pub(super) const WORKS: u8 = 0;
    pub(super) const INCOMPLETE: u8 = 1;
    pub(super) const NOT_PRIMARY: u8 = 3;
    pub(super) const NO_ANSWER: u8 = 4;
}

/// Lines, and the worst of what they say.
struct Report {
    group: String,
    lines: Vec<String>,
    worst: u8,
}

impl Report {
    fn line(&mut self, words: impl AsRef<str>) {
        self.lines.push(format!("{}: {}", self.group, words.as_ref()));
    }

    /// Of a primary something is missing.
    fn incomplete(&mut self) {
        if self.worst == state::WORKS {
            self.worst = state::INCOMPLETE;
        }
    }
}

impl<S: System> Run<'_, S> {
    /// What to print, and the exit status: 0 works as primary, 1 primary but not all of it, 3 not primary, 4 hastd does not
    /// answer.
    pub(crate) fn report(mut self) -> (Vec<String>, u8) {
        let mut report = Report { group: self.group.name.clone(), lines: Vec::new(), worst: state::WORKS };
        for resource in self.group.resources.clone() {
            self.report_resource(&resource, &mut report);
        }
        match self.group.content.clone() {
            Content::Nothing => {}
            Content::Pool(name) => match self.own_pool(&name) {
                Ok(Some(pool)) => {
                    if pool.health == "SUSPENDED" {
                        report.incomplete();
                    }
                    report.line(format!("{name} is {}", pool.health));
                }
                Ok(None) => {
                    report.incomplete();
                    report.line(format!("{name} is not imported"));
                }
                Err(why) => {
                    report.incomplete();
                    report.line(why);
                }
            },
            Content::Files { mount, .. } => {
                let shown = mount.display();
                if self.is_mounted(&mount) {
                    report.line(format!("{shown} is mounted"));
                } else {
                    report.incomplete();
                    match self.strangers_at(&mount) {
                        Some(other) => {
                            report
                                .line(format!("{shown} has something else mounted on it ({})", other.source));
                        }
                        None => report.line(format!("{shown} is not mounted")),
                    }
                }
            }
        }
        for address in self.group.addresses.clone() {
            if self.system.has_address(&address) == Ok(true) {
                report.line(format!("{address} is here"));
            } else {
                report.incomplete();
                report.line(format!("{address} is not here"));
            }
        }
        (report.lines, report.worst)
    }

    fn report_resource(&mut self, resource: &str, report: &mut Report) {
        let Some(known) = self.system.ask(resource) else {
            report.worst = state::NO_ANSWER;
            report.line(format!("{resource} is unknown, hastd does not answer"));
            return;
        };
        if known.role != "primary" {
            report.worst = report.worst.max(state::NOT_PRIMARY);
            report.line(format!("{resource} is {}", known.role));
            return;
        }
        let mut condition = "";
        if self.device_is_missing(resource).is_some() {
            report.incomplete();
            let attached =
                self.system.platform() == Platform::Linux && self.system.attached(resource).is_some();
            condition = if attached { ", its device does not answer" } else { ", its device is not there" };
        }
        report.line(format!("{resource} is {}{condition}", known.role));
    }
}
