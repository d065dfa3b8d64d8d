//! What may block, done in short-lived threads: asking the name service, opening and locking a provider.
//!
//! A thread does one thing, reports it, and ends. Nobody waits for one: whoever asked has a deadline of its
//! own, and a report that is no longer wanted is dropped.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use hast_format::layout::{Layout, LayoutError};
use hast_format::metadata::Metadata;
use hast_net::address::Address;
use hast_provider::{Provider, ProviderError};
use polling::Poller;

use super::attach::{self, Attached, Export, NoDevice};
use super::resource::ResourceId;

/// How long a provider that is in use is asked for again: a worker of a hastd that was killed may still be
/// storing its last writes.
const PATIENCE: Duration = Duration::from_secs(5);

/// A number for each provider that is being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobId(u64);

/// What a thread found.
#[derive(Debug)]
pub(super) enum Report {
    /// The addresses of a host.
    Resolved {
        /// Who was looked for.
        address: Address,
        /// The answer.
        result: io::Result<Vec<SocketAddr>>,
    },
    /// A provider.
    Opened {
        /// Which job it was.
        job: JobId,
        /// Open for reading and writing, and locked; with its metadata if that was wanted.
        result: Result<(Provider, Option<Metadata>), UnusableError>,
    },
    /// A provider that a resource is to use instead of the one that it has.
    Probed {
        /// Which job it was.
        job: JobId,
        /// Why it cannot.
        result: Result<(), String>,
    },
    /// What a provider says that nobody uses.
    Looked {
        /// The provider.
        path: PathBuf,
        /// Its metadata.
        result: Result<Metadata, ProviderError>,
    },
    /// A block device over a primary's export.
    Attached {
        /// Whose.
        resource: ResourceId,
        /// The device.
        result: Result<Attached, NoDevice>,
    },
}

/// Why a provider is of no use to a resource.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnusableError {
    /// It cannot be opened, locked or read, or it is not the resource's.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Its metadata does not fit it.
    #[error("Metadata on {} is unusable: {error}.", path.display())]
    Layout {
        /// The provider.
        path: PathBuf,
        /// What does not fit.
        error: LayoutError,
    },
}

/// The threads at work.
#[derive(Debug)]
pub(super) struct Jobs {
    poller: Arc<Poller>,
    sender: Sender<Report>,
    reports: Receiver<Report>,
    /// Addresses being looked up: whoever asks for one of them shares the answer, so that there are never
    /// more such threads than addresses in the configuration.
    resolving: HashSet<Address>,
    /// Providers being looked at, likewise.
    looking: HashSet<PathBuf>,
    next: u64,
}

impl Jobs {
    /// No jobs yet; threads wake `poller` when they have something to report.
    pub(super) fn new(poller: &Arc<Poller>) -> Jobs {
        let (sender, reports) = channel();
        Jobs {
            poller: Arc::clone(poller),
            sender,
            reports,
            resolving: HashSet::new(),
            looking: HashSet::new(),
            next: 0,
        }
    }

    /// Looks a host up; the report carries the address.
    pub(super) fn resolve(&mut self, address: &Address) {
        if !self.resolving.insert(address.clone()) {
            return;
        }
        let wanted = address.clone();
        self.start(
            move || Report::Resolved { result: wanted.resolve(), address: wanted },
            |error| Report::Resolved { address: address.clone(), result: Err(error) },
        );
    }

    fn new_job(&mut self) -> JobId {
        let job = JobId(self.next);
        self.next = self.next.wrapping_add(1);
        job
    }

    /// Opens and locks a provider, unless it is `held` already, and reads its metadata if it is to be asked
    /// what it says `about` a resource: then it has to be fit for use.
    pub(super) fn open(&mut self, path: PathBuf, held: Option<Provider>, about: Option<String>) -> JobId {
        let job = self.new_job();
        let place = path.clone();
        let work = move || {
            let provider = held.map_or_else(|| Provider::claim(&place, PATIENCE), Ok)?;
            let metadata = about.map(|resource| fit_metadata(&provider, &resource)).transpose()?;
            Ok((provider, metadata))
        };
        self.start(
            move || Report::Opened { job, result: work() },
            |error| Report::Opened { job, result: Err(ProviderError::Open { path, error }.into()) },
        );
        job
    }

    /// Looks whether `resource` can use the provider at `path`, and lets it go again. What it uses now, at `held`, may be the
    /// same disk by another name.
    pub(super) fn probe(&mut self, path: PathBuf, held: Option<PathBuf>, resource: String) -> JobId {
        let job = self.new_job();
        let work = move || -> Result<(), UnusableError> {
            let same = held.is_some_and(|held| is_same(&held, &path));
            let provider =
                if same { Provider::open(&path, false)? } else { Provider::claim(&path, Duration::ZERO)? };
            fit_metadata(&provider, &resource).map(drop)
        };
        self.start(
            move || Report::Probed { job, result: work().map_err(|error| error.to_string()) },
            |error| Report::Probed { job, result: Err(format!("{}.", hast_log::error_text(&error))) },
        );
        job
    }

    /// Reads the metadata of a provider that nobody uses.
    pub(super) fn look(&mut self, path: &Path) {
        if !self.looking.insert(path.to_owned()) {
            return;
        }
        let path = path.to_owned();
        let place = path.clone();
        self.start(
            move || {
                let result = Provider::open(&place, false).and_then(|provider| provider.read_metadata());
                Report::Looked { path: place, result }
            },
            |error| {
                let result = Err(ProviderError::Open { path: path.clone(), error });
                Report::Looked { path, result }
            },
        );
    }

    /// Makes a block device of an export that a worker serves, or is about to.
    pub(super) fn attach(&mut self, resource: ResourceId, export: Export) {
        self.start(
            move || Report::Attached { resource, result: attach::attach(&export) },
            |error| Report::Attached {
                resource,
                result: Err(NoDevice::Failed(hast_log::error_text(&error))),
            },
        );
    }

    /// The next report.
    pub(super) fn report(&mut self) -> Option<Report> {
        let report = self.reports.try_recv().ok()?;
        match &report {
            Report::Resolved { address, .. } => _ = self.resolving.remove(address),
            Report::Looked { path, .. } => _ = self.looking.remove(path),
            Report::Opened { .. } | Report::Probed { .. } | Report::Attached { .. } => {}
        }
        Some(report)
    }

    fn start(
        &self,
        work: impl FnOnce() -> Report + Send + 'static,
        otherwise: impl FnOnce(io::Error) -> Report,
    ) {
        let (sender, poller) = (self.sender.clone(), Arc::clone(&self.poller));
        let thread = thread::Builder::new().name("hastd job".to_owned()).spawn(move || {
            // Fails only when the supervisor is ending.
            let _ = sender.send(work());
            let _ = poller.notify();
        });
        if let Err(error) = thread {
            let _ = self.sender.send(otherwise(error));
            let _ = self.poller.notify();
        }
    }
}

/// Whether two paths lead to one disk or file.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let identity = |path: &Path| {
        let metadata = path.metadata().ok()?;
        let kind = metadata.file_type();
        let is_device = kind.is_block_device() || kind.is_char_device();
        Some(if is_device { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// The metadata of a provider that can be used. The worker looks again when it is its turn.
fn fit_metadata(provider: &Provider, resource: &str) -> Result<Metadata, UnusableError> {
    let metadata = provider.read_metadata_of(resource)?;
    match Layout::open(&metadata, provider.mediasize(), provider.sectorsize()) {
        Ok(_) => Ok(metadata),
        Err(error) => Err(UnusableError::Layout { path: provider.path().to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polling::Events;
    use std::time::Instant;

    fn wait(jobs: &mut Jobs, poller: &Poller) -> Report {
        let give_up = Instant::now() + Duration::from_secs(30);
        let mut events = Events::new();
        loop {
            if let Some(report) = jobs.report() {
                return report;
            }
            assert!(Instant::now() < give_up);
            poller.wait(&mut events, Some(Duration::from_secs(1))).unwrap();
        }
    }

    #[test]
    fn a_provider_that_is_let_go_in_time_is_taken() {
        let poller = Arc::new(Poller::new().unwrap());
        let mut jobs = Jobs::new(&poller);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();

        let holder = Provider::open(file.path(), true).unwrap();
        holder.lock().unwrap();
        let impatient = Provider::claim(file.path(), Duration::ZERO);
        assert!(matches!(impatient, Err(ProviderError::InUse { .. })));

        let job = jobs.open(file.path().to_owned(), None, None);
        assert!(jobs.report().is_none());
        drop(holder);
        let Report::Opened { job: done, result } = wait(&mut jobs, &poller) else { panic!() };
        assert_eq!(done, job);
        let (held, None) = result.unwrap() else { panic!() };
        assert!(Provider::open(file.path(), true).unwrap().lock().is_err());
        drop(held);
    }

    #[test]
    fn names_are_looked_up_and_shared() {
        let poller = Arc::new(Poller::new().unwrap());
        let mut jobs = Jobs::new(&poller);
        let address = Address::parse("tcp4://localhost:99").unwrap();
        jobs.resolve(&address);
        jobs.resolve(&address);
        let Report::Resolved { address: of, result } = wait(&mut jobs, &poller) else { panic!() };
        assert_eq!(of, address);
        assert_eq!(result.unwrap(), vec!["127.0.0.1:99".parse().unwrap()]);
        assert!(jobs.report().is_none());
        jobs.resolve(&address);
        assert!(matches!(wait(&mut jobs, &poller), Report::Resolved { .. }));
    }
}
