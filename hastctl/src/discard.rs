//! `hastctl discard`: gives up what was written on this node after a split-brain, and makes it the other one's
//! secondary.
//!
//! Does what role init, `create` and role secondary do, except that the provider remembers since when its map has
//! all that was changed. When the nodes meet they decide by that whether only those extents are copied; whoever does
//! not understand it sees a fresh provider, and copies everything.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hast_conf::{Config, Resource};
use hast_format::layout::{Layout, LayoutError};
use hast_format::metadata::{Metadata, Role};
use hast_net::control::{self, Divergence, Entry, Reply, Request};
use hast_net::human::human;
use hast_provider::{Provider, ProviderError};

use crate::client::{self, AskError};
use crate::exit;

/// How long the daemon may take to let the provider go once the role is init.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gives up what was written to `resource` here; says what will have to be copied.
pub(crate) fn discard(config: &Config, resource: &Resource) -> Result<String, DiscardError> {
    let name = &resource.name;
    let Entry::Status { status, .. } = ask(config, control::Command::Status, name)? else {
        return Err(DiscardError::NoAnswer);
    };
    if status.role == Role::Primary.as_str() {
        return Err(DiscardError::Primary);
    }
    let divergence = status.facts.and_then(|facts| facts.divergence);
    // What cannot be given up is found out while nothing has changed yet.
    let provider = Provider::open(Path::new(&resource.localpath), false).map_err(DiscardError::Open)?;
    fit(&provider, name)?;
    drop(provider);

    ask(config, control::Command::SetRole(Role::Init), name)?;
    let given_up = give_up(resource)?;
    ask(config, control::Command::SetRole(Role::Secondary), name)?;
    Ok(format!("{name}: {}", prospect(&given_up, divergence)))
}

/// On the provider: metadata of a fresh one that remembers.
fn give_up(resource: &Resource) -> Result<Metadata, DiscardError> {
    let provider = Provider::claim(Path::new(&resource.localpath), PATIENCE).map_err(DiscardError::Open)?;
    provider.recover_metadata_of(&resource.name).map_err(DiscardError::Read)?;
    let metadata = fit(&provider, &resource.name)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let given_up = metadata.discarded(since, resource.remote_text());
    provider.write_metadata(&given_up).map_err(DiscardError::Write)?;
    log::debug!("What was written to {} is given up.", provider.path().display());
    Ok(given_up)
}

fn fit(provider: &Provider, name: &str) -> Result<Metadata, DiscardError> {
    let metadata = provider.read_metadata_of(name).map_err(DiscardError::Read)?;
    match Layout::open(&metadata, provider.mediasize(), provider.sectorsize()) {
        Ok(_) => Ok(metadata),
        Err(error) => Err(DiscardError::Layout { path: provider.path().display().to_string(), error }),
    }
}

/// What will be copied, as far as it is known before the nodes meet.
fn prospect(given_up: &Metadata, divergence: Option<Divergence>) -> String {
    let unknown = given_up.extension.parted == 0 || given_up.extension.given_up == 0;
    match divergence {
        _ if unknown => EVERYTHING.to_owned(),
        Some(divergence) if !divergence.exact => EVERYTHING.to_owned(),
        Some(divergence) => {
            let extents = divergence.either();
            let bytes = extents.saturating_mul(divergence.extentsize.into());
            format!(
                "{extents} extents, {bytes} ({}), have changed since the nodes parted and will be synchronised",
                human(bytes)
            )
        }
        None => {
            "what has changed since the nodes parted will be synchronised, or everything if the other node \
                 does not know that; hastd's log says so when they meet"
                .to_owned()
        }
    }
}

const EVERYTHING: &str =
    "everything will be synchronised: it is not known what has changed since the nodes parted";

/// Asks hastd for one resource.
fn ask(config: &Config, command: control::Command, name: &str) -> Result<Entry, DiscardError> {
    let verbose = command == control::Command::Status;
    let request = Request { verbose, ..Request::new(command, vec![name.to_owned()]) };
    match client::ask(config, &request)? {
        Reply::Error(error) => Err(DiscardError::Refused { error }),
        Reply::Reloaded(_) => Err(DiscardError::NoAnswer),
        Reply::Entries(entries) => match entries.into_iter().next() {
            Some(Entry::Error { error, .. }) => Err(DiscardError::Failed { error }),
            Some(entry) => Ok(entry),
            None => Err(DiscardError::NoAnswer),
        },
    }
}

/// Why nothing was given up, or not to the end. Whatever it is, the command can be repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscardError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("Error {error} received from hastd.")]
    Refused { error: i16 },
    #[error("Received error {error} from hastd.")]
    Failed { error: i16 },
    #[error("hastd says nothing about it.")]
    NoAnswer,
    #[error(
        "The role is primary: what is written here is in use. Change the role to secondary first, if this is the \
         node that is to give way."
    )]
    Primary,
    #[error("{0}")]
    Open(ProviderError),
    #[error("{0}")]
    Read(ProviderError),
    #[error("Metadata on {path} is unusable: {error}.")]
    Layout { path: String, error: LayoutError },
    #[error("{0}")]
    Write(ProviderError),
}

impl DiscardError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            DiscardError::Ask(error) => error.exit_code(),
            DiscardError::Refused { .. } => exit::SOFTWARE,
            DiscardError::Failed { error } => u8::try_from(error & 0xff).unwrap_or(u8::MAX).max(1),
            DiscardError::NoAnswer => exit::UNAVAILABLE,
            DiscardError::Primary => exit::TEMPFAIL,
            DiscardError::Open(_) => exit::NOINPUT,
            DiscardError::Read(_) | DiscardError::Layout { .. } => exit::DATAERR,
            DiscardError::Write(_) => exit::IOERR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_certain_is_not_promised() {
        let layout = Layout::create(1 << 20, 512, 4096).unwrap();
        let mut used = Metadata::created("r", &layout, 4);
        used.resuid = 7;
        let apart = Divergence { extentsize: 4096, here: 3, there: 2, both: 1, exact: true };
        assert_eq!(prospect(&used.discarded(0, "x"), Some(apart)), EVERYTHING, "no number");
        used.extension.parted = 9;
        let given_up = used.discarded(0, "x");
        let text = prospect(&given_up, Some(apart));
        assert_eq!(
            text,
            "4 extents, 16384 (16KB), have changed since the nodes parted and will be synchronised"
        );
        assert_eq!(prospect(&given_up, Some(Divergence { exact: false, ..apart })), EVERYTHING);
        assert!(prospect(&given_up, None).contains("or everything"));
    }
}
