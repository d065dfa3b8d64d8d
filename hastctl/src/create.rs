//! `hastctl create`: makes a resource's local provider a fresh one.
//!
//! Works on the provider itself, so it refuses one that somebody uses, and looks first what is on it. Whatever cannot
//! be a provider of this node or of its peer is refused before anything is written.

use std::path::Path;
use std::time::Duration;

use hast_conf::{Config, Resource};
use hast_format::layout::{EXTENTSIZE_DEFAULT, Layout, LayoutError, keepdirty};
use hast_format::metadata::Metadata;
use hast_provider::{Provider, ProviderError};

use crate::exit;
use crate::human::printable;
use crate::occupants::{self, Found};

/// What the options of `create` ask for, in bytes and extents; 0 stands for the default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) extentsize: u64,
    pub(crate) keepdirty: u64,
    pub(crate) mediasize: u64,
    pub(crate) alignment: Alignment,
    /// Write over what the provider holds.
    pub(crate) force: bool,
}

/// Whether the data area begins on a multiple of 4096 bytes although that makes it a little smaller than the
/// original's would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// It has been asked for.
    Always,
    /// Yes, unless the provider was laid out otherwise for this very resource.
    Ours,
    /// No: the other node may be an original, which takes data areas of different sizes for no pair.
    Original,
}

impl Alignment {
    /// What suits a pair that reads this configuration: an original cannot be in it if it could not read it.
    pub(crate) fn of(config: &Config) -> Alignment {
        if config.is_ours_alone { Alignment::Ours } else { Alignment::Original }
    }
}

/// Initializes the local provider of `resource`.
pub(crate) fn create(resource: &Resource, wanted: Wanted) -> Result<(), CreateError> {
    let path = Path::new(&resource.localpath);
    let provider = Provider::claim(path, Duration::ZERO).map_err(CreateError::Open)?;

    let former = provider.read_metadata_of(&resource.name).ok();
    let layout = lay_out(&provider, wanted, former.as_ref().map(|metadata| metadata.datasize))?;
    let keepdirty = keepdirty(wanted.keepdirty)
        .map_err(|error| CreateError::Layout { path: path.display().to_string(), error })?;
    if former.is_none() && !wanted.force {
        look(&provider, &layout)?;
    }
    if keepdirty == 1 {
        log::warn!(
            "A keepdirty of 1 makes FreeBSD's hastd abort in the primary role; 2 is the least it takes."
        );
    }
    let metadata = Metadata::created(&resource.name, &layout, keepdirty);
    provider.initialize(&metadata, &layout).map_err(CreateError::Write)?;
    log::trace!("Initialized {}.", path.display());
    Ok(())
}

/// Refuses a provider that holds something else than this resource.
fn look(provider: &Provider, layout: &Layout) -> Result<(), CreateError> {
    let path = provider.path().display().to_string();
    if let Ok(metadata) = provider.read_metadata() {
        let what = format!("HAST's metadata of the resource {}", printable(&metadata.resource));
        return Err(CreateError::Occupied { path, what });
    }
    match occupants::find(provider, layout.localoff()) {
        Found::Nothing => Ok(()),
        Found::These(what) => Err(CreateError::Occupied { path, what }),
        Found::Unknown(tool) => Err(CreateError::NotEmpty { path, tool }),
    }
}

/// Why a provider was not initialized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// It cannot be opened, is no provider, or is in use.
    #[error("{0}")]
    Open(ProviderError),
    #[error("{path} is not empty: it has {what}. Nothing was done; `hastctl create -f' writes over it.")]
    Occupied { path: String, what: String },
    #[error(
        "{path} is not empty, and {tool}(8), which would tell what is on it, cannot be run. Nothing was done; \
         `hastctl create -f' writes over it."
    )]
    NotEmpty { path: String, tool: &'static str },
    #[error("Provided mediasize is larger than provider {path} size.")]
    Mediasize { path: String },
    #[error("Sector size of provider {path} is not power of 2 ({sectorsize}).")]
    Sectorsize { path: String, sectorsize: u32 },
    #[error("Extent size ({extentsize}) is less than sector size ({sectorsize}).")]
    ExtentBelowSector { extentsize: u64, sectorsize: u32 },
    #[error("Extent size ({extentsize}) is not multiple of sector size ({sectorsize}).")]
    ExtentNoMultiple { extentsize: u64, sectorsize: u32 },
    #[error("Extent size ({extentsize}) is not a power of two up to 1073741824 (1g).")]
    Extentsize { extentsize: u64 },
    #[error("Unable to initialize provider {path}: {error}.")]
    Layout { path: String, error: LayoutError },
    /// It cannot be written: what is on it now is no provider.
    #[error("{0}")]
    Write(ProviderError),
}

impl CreateError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CreateError::Open(_) => exit::NOINPUT,
            CreateError::Write(_) => exit::IOERR,
            _ => exit::DATAERR,
        }
    }
}

/// `former` is the size of the data area that the provider has now, if it is this resource's.
fn lay_out(provider: &Provider, wanted: Wanted, former: Option<u64>) -> Result<Layout, CreateError> {
    let path = provider.path().display().to_string();
    let sectorsize = provider.sectorsize();
    let mediasize = match wanted.mediasize {
        0 => provider.mediasize(),
        mediasize if mediasize > provider.mediasize() => return Err(CreateError::Mediasize { path }),
        mediasize => mediasize,
    };
    if !sectorsize.is_power_of_two() {
        return Err(CreateError::Sectorsize { path, sectorsize });
    }
    if !mediasize.is_multiple_of(sectorsize.into()) {
        log::warn!(
            "{mediasize} bytes are not a multiple of the sector size ({sectorsize}): rounded down to {}.",
            mediasize.saturating_sub(mediasize.checked_rem(sectorsize.into()).unwrap_or_default())
        );
    }
    let extentsize = match wanted.extentsize {
        0 => u64::from(EXTENTSIZE_DEFAULT),
        extentsize => extentsize,
    };
    if extentsize < u64::from(sectorsize) {
        return Err(CreateError::ExtentBelowSector { extentsize, sectorsize });
    }
    if !extentsize.is_multiple_of(sectorsize.into()) {
        return Err(CreateError::ExtentNoMultiple { extentsize, sectorsize });
    }
    let narrow = u32::try_from(extentsize).map_err(|_| CreateError::Extentsize { extentsize })?;
    let unable = |error| match error {
        LayoutError::ExtentSize { .. } => CreateError::Extentsize { extentsize },
        error => CreateError::Layout { path: path.clone(), error },
    };
    let plain = Layout::create(mediasize, sectorsize, narrow).map_err(unable)?;
    let aligned = Layout::create_aligned(mediasize, sectorsize, narrow).map_err(unable)?;
    Ok(match wanted.alignment {
        Alignment::Always => aligned,
        // A size that was asked for is that of the other node, also if an original has created that one.
        _ if wanted.mediasize != 0 => plain.moved_to_boundary(provider.mediasize()),
        // What the other node was connected to before keeps its size.
        Alignment::Ours if former != Some(plain.datasize()) => aligned,
        Alignment::Original if former == Some(aligned.datasize()) => aligned,
        Alignment::Ours | Alignment::Original => plain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_original_may_read_is_laid_out_as_by_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let provider = Provider::open(file.path(), true).unwrap();
        let lay_out = |alignment, mediasize, former| {
            let wanted = Wanted { extentsize: 0, keepdirty: 0, mediasize, alignment, force: false };
            let layout = lay_out(&provider, wanted, former).unwrap();
            (layout.localoff(), layout.datasize())
        };
        let (all, half) = (64 << 20, 32 << 20);
        let (plain, aligned) = ((4608, all - 4608), (8192, all - 8192));
        for (alignment, mediasize, former, expected) in [
            (Alignment::Original, 0, None, plain),
            (Alignment::Ours, 0, None, aligned),
            (Alignment::Always, 0, None, aligned),
            // The same resource keeps its size, whatever the file says by now.
            (Alignment::Ours, 0, Some(plain.1), plain),
            (Alignment::Original, 0, Some(aligned.1), aligned),
            (Alignment::Always, 0, Some(plain.1), aligned),
            // Another size was chosen for other reasons.
            (Alignment::Ours, 0, Some(half), aligned),
            (Alignment::Original, 0, Some(half), plain),
            // A size that is asked for is the original's, at a boundary if that costs nothing.
            (Alignment::Ours, all, None, plain),
            (Alignment::Original, half, None, (1 << 20, half - 4608)),
            (Alignment::Ours, half, Some(aligned.1), (1 << 20, half - 4608)),
        ] {
            assert_eq!(
                lay_out(alignment, mediasize, former),
                expected,
                "{alignment:?} {mediasize} {former:?}"
            );
        }
    }

    #[test]
    fn a_file_that_an_original_cannot_read_is_for_two_of_ours() {
        let of = |text: &str| {
            let text = format!("{text}\nresource r {{ on a {{ local /r remote none }} }}\n");
            Alignment::of(&hast_conf::parse(&text, "hast.conf", &hast_conf::Node::named("a")).unwrap())
        };
        assert_eq!(of(""), Alignment::Original);
        assert_eq!(of("#% device none"), Alignment::Original);
        assert_eq!(of("device none"), Alignment::Ours);
        assert_eq!(of("on b { nbd /x }"), Alignment::Ours);
    }
}
