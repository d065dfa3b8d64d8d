//! Status in detail of a resource that has no worker to ask: its provider is looked at, read-only, by a thread.
//! A provider that does not answer costs one thread and the detail, and holds up nobody.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hast_format::metadata::Metadata;
use hast_net::control::{ERROR_NO_ENTRY, Entry};
use hast_provider::ProviderError;

use super::Supervisor;
use super::control::status;
use super::promotion;
use super::resource::ResourceId;

/// How long a provider may take.
const BOUND: Duration = Duration::from_secs(5);

/// A control client that waits for what a provider says.
#[derive(Debug)]
pub(super) struct Look {
    resource: ResourceId,
    name: String,
    path: PathBuf,
    client: usize,
    slots: Vec<usize>,
    deadline: Instant,
}

impl Look {
    /// When the client gets an answer without it.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Supervisor {
    /// Begins to look at a resource's provider for a control client.
    pub(super) fn look(&mut self, index: usize, client: usize, slots: Vec<usize>, now: Instant) {
        let Some(resource) = self.resources.get(index) else { return };
        let (name, path) = (resource.config.name.clone(), resource.config.localpath.clone());
        self.jobs.look(&path);
        let deadline = now + BOUND;
        self.looks.push(Look { resource: resource.id, name, path, client, slots, deadline });
    }

    /// A thread has read a provider's metadata, or has not.
    pub(super) fn looked(&mut self, path: &std::path::Path, result: &Result<Metadata, ProviderError>) {
        if let Err(error) = result {
            log::debug!("{error}");
        }
        let done: Vec<Look> = self.looks.extract_if(.., |look| look.path == path).collect();
        done.into_iter().for_each(|look| self.answer_look(look, result.as_ref().ok()));
    }

    /// Answers without what did not come in time.
    pub(super) fn expire_looks(&mut self, now: Instant) {
        let late: Vec<Look> = self.looks.extract_if(.., |look| look.deadline <= now).collect();
        late.into_iter().for_each(|look| self.answer_look(look, None));
    }

    fn answer_look(&mut self, look: Look, metadata: Option<&Metadata>) {
        let entry = match self.resources.iter().find(|resource| resource.id == look.resource) {
            Some(resource) => {
                let metadata = metadata.filter(|metadata| metadata.resource == resource.config.name);
                let connection = resource.connections.shown(Instant::now());
                status(resource, None, metadata.map(promotion::facts), connection)
            }
            None => Entry::error(look.name, ERROR_NO_ENTRY),
        };
        self.answer(look.client, &look.slots, entry);
    }
}
