//! The services of a group.

use crate::system::{Ran, System, Way};

use super::{Done, Run, Undo};

/// How a service has failed, in brackets.
fn why(ran: &Ran) -> String {
    match ran {
        Ran::Well => String::new(),
        Ran::Badly(status, _) => format!("status {status}"),
        Ran::TooLong(limit) => format!("not within {} s", limit.as_secs()),
        Ran::Not(why) => why.clone(),
    }
}

impl<S: System> Run<'_, S> {
    pub(super) fn start_service(&mut self, name: &str) -> Done {
        if self.system.service_runs(name) == Some(true) {
            self.note(format!("{name} runs already."));
            return Ok(());
        }
        self.step(format!("Starting {name}."))?;
        self.undo.push(Undo::Service(name.to_owned()));
        match self.system.service(name, Way::Up) {
            Ran::Well => Ok(()),
            ran => self.failed(format!("{name} does not start ({}).", why(&ran))),
        }
    }

    pub(super) fn stop_service(&mut self, name: &str) -> Done {
        if self.system.service_runs(name) == Some(false) {
            return Ok(());
        }
        self.note(format!("Stopping {name}."));
        match self.system.service(name, Way::Down) {
            Ran::Well => Ok(()),
            ran => self.failed(format!("{name} does not stop ({}).", why(&ran))),
        }
    }
}
