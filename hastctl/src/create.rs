//! `hastctl create`: makes a resource's local provider a fresh one.
//!
//! Works on the provider itself, so it refuses one that somebody uses. Whatever cannot be a provider of
//! this node or of its peer is refused before anything is written.

use std::path::Path;
use std::time::Duration;

use hast_conf::Resource;
use hast_format::layout::{EXTENTSIZE_DEFAULT, Layout, LayoutError, keepdirty};
use hast_format::metadata::Metadata;
use hast_provider::{Provider, ProviderError};

use crate::exit;

/// What the options of `create` ask for, in bytes and extents; 0 stands for the default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) extentsize: u64,
    pub(crate) keepdirty: u64,
    pub(crate) mediasize: u64,
}

/// Initializes the local provider of `resource`.
pub(crate) fn create(resource: &Resource, sizes: Sizes) -> Result<(), CreateError> {
    let path = Path::new(&resource.localpath);
    let provider = Provider::claim(path, Duration::ZERO).map_err(CreateError::Open)?;

    let layout = lay_out(&provider, sizes)?;
    let keepdirty = keepdirty(sizes.keepdirty)
        .map_err(|error| CreateError::Layout { path: path.display().to_string(), error })?;
    if keepdirty == 1 {
        log::warn!(
            "A keepdirty of 1 makes FreeBSD's hastd abort in the primary role; 2 is the least it takes."
        );
    }
    let metadata = Metadata::created(&resource.name, &layout, keepdirty);
    provider.initialize(&metadata, &layout).map_err(CreateError::Write)?;
    log::debug!("Initialized {}.", path.display());
    Ok(())
}

/// Why a provider was not initialized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// It cannot be opened, is no provider, or is in use.
    #[error("{0}")]
    Open(ProviderError),
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

fn lay_out(provider: &Provider, sizes: Sizes) -> Result<Layout, CreateError> {
    let path = provider.path().display().to_string();
    let sectorsize = provider.sectorsize();
    let mediasize = match sizes.mediasize {
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
    let extentsize = match sizes.extentsize {
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
    Layout::create(mediasize, sectorsize, narrow).map_err(|error| match error {
        LayoutError::ExtentSize { .. } => CreateError::Extentsize { extentsize },
        error => CreateError::Layout { path, error },
    })
}
