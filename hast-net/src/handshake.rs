//! The two steps with which a primary and a secondary agree to be a pair (spec: wire, handshake).
//!
//! The primary says [`FirstHello`] on its first connection and is answered with a token; it opens the second
//! connection with [`SecondHello`], which proves the token, and the [`SecondAnswer`] comes back on the
//! first. This module translates between those and nv lists. Who is refused and why, and what the counts
//! mean, is decided elsewhere; only the texts of the refusals are kept here, because both ends show them.

use crate::buffer::Buffer;
use crate::control::Divergence;
pub use crate::extensions::Extensions;
use crate::frame::VERSION;
use hast_format::nv::{List, Writer};
use thiserror::Error;

/// Bytes in a token.
pub const TOKEN_SIZE: usize = 16;

/// The secret with which the second connection is recognised as the first one's twin.
pub type Token = [u8; TOKEN_SIZE];

/// What a node's system drew when it started: another one after each start. Only said when `sync-marks` is
/// active.
pub type BootId = [u8; 16];

/// What a primary says first, in a frame of version 1 while nothing is negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstHello {
    /// Name of the resource.
    pub resource: String,
    /// The highest protocol version that the primary speaks, at least 1: the peer's word, so it may be
    /// above ours (see [`FirstHello::negotiated`]).
    pub version: u8,
    /// What the primary offers beyond the protocol; nothing if it is an original.
    pub ext: Extensions,
}

impl FirstHello {
    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = Writer::new();
        nv.str("resource", &self.resource).u8("version", self.version);
        put_extensions(&mut nv, self.ext);
        nv
    }

    /// Reads the pairs. A version that is absent or 0 stands for 1.
    ///
    /// # Errors
    /// No resource is named.
    pub fn decode(list: &List<'_>) -> Result<FirstHello, HandshakeError> {
        Ok(FirstHello { resource: resource(list)?, version: version(list), ext: extensions(list) })
    }

    /// The version that both ends speak: the lower one.
    #[must_use]
    pub fn negotiated(&self) -> u8 {
        self.version.clamp(1, VERSION)
    }
}

/// The secondary's answer to [`FirstHello`], on the same connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAnswer {
    /// The protocol version to be used, 1 or 2.
    pub version: u8,
    /// What [`SecondHello`] must repeat.
    pub token: Token,
    /// Of what the primary offered, what the secondary knows too: this is active. A primary takes only what
    /// it did offer.
    pub ext: Extensions,
}

impl FirstAnswer {
    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = Writer::new();
        nv.u8("version", self.version).u8_array("token", &self.token);
        put_extensions(&mut nv, self.ext);
        nv
    }

    /// Reads the pairs. A version that is absent or 0 stands for 1.
    ///
    /// # Errors
    /// The token is missing or of another size than 16 bytes, or the version is one we never offered.
    pub fn decode(list: &List<'_>) -> Result<FirstAnswer, HandshakeError> {
        let version = version(list);
        if version > VERSION {
            return Err(HandshakeError::Range { field: "version", value: version.into() });
        }
        let token = list.u8_array("token").ok_or(HandshakeError::Missing("token"))?;
        Ok(FirstAnswer { version, token: self::token(token)?, ext: extensions(list) })
    }
}

/// A refusal of [`FirstHello`], or of a [`SecondHello`] whose token is wrong, on the connection that
/// carried what is refused, in a frame of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, as the other node's administrator reads it; see [`texts`].
    pub errmsg: String,
    /// The refusing node is primary itself: ask again each second until `timeout`, then go on alone.
    pub wait: bool,
}

impl Refusal {
    /// A refusal that is not worth waiting for.
    #[must_use]
    pub fn new(errmsg: impl Into<String>) -> Refusal {
        Refusal { errmsg: errmsg.into(), wait: false }
    }

    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = Writer::new();
        nv.str("errmsg", &self.errmsg);
        if self.wait {
            nv.u8("wait", 1);
        }
        nv
    }

    /// Reads the pairs; None if this is no refusal. The text may be any bytes; what is not UTF-8 in it is
    /// replaced.
    #[must_use]
    pub fn decode(list: &List<'_>) -> Option<Refusal> {
        Some(Refusal { errmsg: errmsg(list)?, wait: list.contains("wait") })
    }
}

/// What a primary gets for its [`FirstHello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstReply {
    /// Go on with the second step.
    Answer(FirstAnswer),
    /// Not now.
    Refused(Refusal),
}

impl FirstReply {
    /// Reads the pairs.
    ///
    /// # Errors
    /// Neither a refusal nor a valid [`FirstAnswer`].
    pub fn decode(list: &List<'_>) -> Result<FirstReply, HandshakeError> {
        match Refusal::decode(list) {
            Some(refusal) => Ok(FirstReply::Refused(refusal)),
            None => FirstAnswer::decode(list).map(FirstReply::Answer),
        }
    }
}

/// What a primary says on the second connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondHello {
    /// Name of the resource.
    pub resource: String,
    /// The token of the [`FirstAnswer`].
    pub token: Token,
    /// The primary drew `resuid` in this very attempt: its data counts as never written.
    pub virgin: bool,
    /// Identity of the resource. A header without it reads as 0, which is no identity.
    pub resuid: u64,
    /// The primary's count of its own solitary periods.
    pub localcnt: u64,
    /// The primary's last knowledge of the secondary's count.
    pub remotecnt: u64,
    /// The primary's boot id, if `sync-marks` is active.
    pub boot: Option<BootId>,
    /// What it knows of when the nodes parted, if `parting` is active.
    pub parting: Option<Parting>,
    /// What it says of generations, if `connection` is active.
    pub meeting: Option<Meeting>,
}

/// What a primary says of its map in the second step. Connections have numbers, drawn by chance; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parting {
    /// Since the connection of this number its map has all that it may have and the other node not; 0: it cannot say
    /// that of any.
    pub last: u64,
    /// The number of this connection, if it comes about; 0: it will not be able to say that of this one either.
    pub next: u64,
    /// If the secondary refused the last attempt as a split-brain: how far the copies are apart, as the primary
    /// sees it.
    pub divergence: Option<Divergence>,
}

impl Parting {
    fn put(&self, nv: &mut Writer) {
        nv.u64("hast_parted", self.last).u64("hast_parting", self.next);
        if let Some(Divergence { extentsize, here, there, both, exact }) = self.divergence {
            nv.u32("hast_changed_extentsize", extentsize);
            nv.u64("hast_changed_here", here).u64("hast_changed_there", there).u64("hast_changed_both", both);
            nv.u8("hast_changed_exact", exact.into());
        }
    }

    /// None unless both numbers are there; anything less of the divergence is none.
    fn get(list: &List<'_>) -> Option<Parting> {
        let divergence = || {
            Some(Divergence {
                extentsize: list.u32("hast_changed_extentsize")?,
                here: list.u64("hast_changed_here")?,
                there: list.u64("hast_changed_there")?,
                both: list.u64("hast_changed_both")?,
                exact: list.u8("hast_changed_exact")? != 0,
            })
        };
        let (last, next) = (list.u64("hast_parted")?, list.u64("hast_parting")?);
        Some(Parting { last, next, divergence: divergence() })
    }
}

/// The generations that a node has stored, if `connection` is active; 0 stands for no generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// That of its latest connection.
    pub last: u64,
    /// The one before, if it does not know whether the other node has stored the latest; else 0.
    pub before: u64,
}

/// What a primary says of generations in the second step, if `connection` is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meeting {
    /// Those that it has stored.
    pub met: Met,
    /// The low bits of this connection's generation, drawn at random.
    pub draw: u32,
    /// What the secondary knew of its localcnt when it stored `met`, or its localcnt when the nodes became equal since. A
    /// primary that does not say it reads as 0.
    pub localcnt: u64,
}

impl Meeting {
    fn put(self, nv: &mut Writer) {
        self.met.put(nv);
        nv.u32("hast_connection_draw", self.draw).u64("hast_connection_localcnt", self.localcnt);
    }

    fn get(list: &List<'_>) -> Option<Meeting> {
        let localcnt = list.u64("hast_connection_localcnt").unwrap_or(0);
        Some(Meeting { met: Met::get(list)?, draw: list.u32("hast_connection_draw")?, localcnt })
    }
}

impl Met {
    fn put(self, nv: &mut Writer) {
        nv.u64("hast_connection", self.last).u64("hast_connection_before", self.before);
    }

    fn get(list: &List<'_>) -> Option<Met> {
        Some(Met { last: list.u64("hast_connection")?, before: list.u64("hast_connection_before")? })
    }
}

impl SecondHello {
    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = Writer::new();
        nv.str("resource", &self.resource).u8_array("token", &self.token);
        if self.virgin {
            nv.i8("virgin", 1);
        }
        nv.u64("resuid", self.resuid).u64("localcnt", self.localcnt).u64("remotecnt", self.remotecnt);
        put_boot(&mut nv, self.boot);
        if let Some(parting) = &self.parting {
            parting.put(&mut nv);
        }
        if let Some(meeting) = self.meeting {
            meeting.put(&mut nv);
        }
        nv
    }

    /// Reads the pairs. Absent counts read as 0, so that a header with a wrong token and nothing else can be
    /// refused for its token.
    ///
    /// # Errors
    /// No resource is named, or the token is missing or of another size than 16 bytes.
    pub fn decode(list: &List<'_>) -> Result<SecondHello, HandshakeError> {
        let resource = resource(list)?;
        let token = list.u8_array("token").ok_or(HandshakeError::Missing("token"))?;
        Ok(SecondHello {
            resource,
            token: self::token(token)?,
            virgin: list.contains("virgin"),
            resuid: list.u64("resuid").unwrap_or(0),
            localcnt: list.u64("localcnt").unwrap_or(0),
            remotecnt: list.u64("remotecnt").unwrap_or(0),
            boot: boot(list),
            parting: Parting::get(list),
            meeting: Meeting::get(list),
        })
    }
}

/// The first frame on a connection that somebody opened to a secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Step one, on a new first connection.
    First(FirstHello),
    /// Step two, on a second connection.
    Second(SecondHello),
}

impl Hello {
    /// Reads the pairs: with a token this is step two.
    ///
    /// # Errors
    /// As for the two steps; such a connection is closed without an answer.
    pub fn decode(list: &List<'_>) -> Result<Hello, HandshakeError> {
        match list.u8_array("token") {
            Some(_) => SecondHello::decode(list).map(Hello::Second),
            None => FirstHello::decode(list).map(Hello::First),
        }
    }
}

/// Whose data is the right one where the maps say that the nodes may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SyncSource {
    /// The primary's data goes to the secondary.
    Primary = 1,
    /// The secondary's data goes to the primary.
    Secondary = 2,
}

impl SyncSource {
    /// The value of the `syncsrc` pair.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The source with that code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<SyncSource> {
        [SyncSource::Primary, SyncSource::Secondary].into_iter().find(|source| source.code() == code)
    }
}

/// The secondary's answer to [`SecondHello`], on the first connection. Its map follows as the frame's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondAnswer {
    /// Bytes in the secondary's data area.
    pub datasize: u64,
    /// Bytes per extent.
    pub extentsize: u32,
    /// The secondary's count of its own solitary periods.
    pub localcnt: u64,
    /// The secondary's last knowledge of the primary's count.
    pub remotecnt: u64,
    /// The secondary has never been used.
    pub virgin: bool,
    /// Where to synchronise from.
    pub syncsrc: SyncSource,
    /// Bytes of map that follow; 0 for none.
    pub mapsize: u32,
    /// The secondary's boot id, if `sync-marks` is active.
    pub boot: Option<BootId>,
    /// Seconds of silence after which the secondary gives the primary up, if `alive` is active.
    pub peer_timeout: Option<u32>,
    /// If `connection` is active: the generation of this connection, which the secondary has stored, and the one that it
    /// had before. A secondary that could not store it says 0.
    pub met: Option<Met>,
    /// A delete leaves zeros on the secondary's disk, durable with the next flush, or fails; only said if
    /// `zero-deletes` is active.
    pub zero_deletes: bool,
}

impl SecondAnswer {
    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = sizes_and_counts(self.datasize, self.extentsize, self.localcnt, self.remotecnt);
        if self.virgin {
            nv.i8("virgin", 1);
        }
        nv.u8("syncsrc", self.syncsrc.code()).u32("mapsize", self.mapsize);
        put_boot(&mut nv, self.boot);
        if let Some(seconds) = self.peer_timeout {
            nv.u32("hast_peer_timeout", seconds);
        }
        if let Some(met) = self.met {
            met.put(&mut nv);
        }
        if self.zero_deletes {
            nv.u8("hast_zero_deletes", 1);
        }
        nv
    }

    /// Reads the pairs.
    ///
    /// # Errors
    /// A pair is missing or has a value that cannot be.
    pub fn decode(list: &List<'_>) -> Result<SecondAnswer, HandshakeError> {
        let datasize = list.i64("datasize").ok_or(HandshakeError::Missing("datasize"))?;
        let extentsize = list.i32("extentsize").ok_or(HandshakeError::Missing("extentsize"))?;
        let syncsrc = list.u8("syncsrc").ok_or(HandshakeError::Missing("syncsrc"))?;
        Ok(SecondAnswer {
            datasize: u64::try_from(datasize)
                .map_err(|_| HandshakeError::Range { field: "datasize", value: datasize })?,
            extentsize: u32::try_from(extentsize)
                .map_err(|_| HandshakeError::Range { field: "extentsize", value: extentsize.into() })?,
            localcnt: list.u64("localcnt").ok_or(HandshakeError::Missing("localcnt"))?,
            remotecnt: list.u64("remotecnt").ok_or(HandshakeError::Missing("remotecnt"))?,
            virgin: list.contains("virgin"),
            syncsrc: SyncSource::from_code(syncsrc)
                .ok_or(HandshakeError::Range { field: "syncsrc", value: syncsrc.into() })?,
            mapsize: list.u32("mapsize").ok_or(HandshakeError::Missing("mapsize"))?,
            boot: boot(list),
            peer_timeout: list.u32("hast_peer_timeout"),
            met: Met::get(list),
            zero_deletes: list.u8("hast_zero_deletes") == Some(1),
        })
    }

    /// The map that came with the answer: the frame's decoded payload, if it is what was announced.
    ///
    /// # Errors
    /// The payload is of another length than `mapsize`.
    pub fn map(&self, payload: Option<Buffer>) -> Result<Option<Buffer>, HandshakeError> {
        let length = payload.as_ref().map_or(0, |map| map.len());
        if u64::try_from(length).ok() != Some(self.mapsize.into()) {
            return Err(HandshakeError::Map { announced: self.mapsize, length });
        }
        Ok(payload)
    }
}

/// A refusal of [`SecondHello`] after its token was found right: on the first connection, in a frame of
/// version 2. The secondary's map follows as the frame's payload, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondRefusal {
    /// As in [`SecondAnswer`].
    pub datasize: u64,
    /// As in [`SecondAnswer`].
    pub extentsize: u32,
    /// As in [`SecondAnswer`].
    pub localcnt: u64,
    /// As in [`SecondAnswer`].
    pub remotecnt: u64,
    /// Why, as the primary's administrator reads it; see [`texts`].
    pub errmsg: String,
    /// With a map, if `parting` is active and both nodes have written alone: the connection since which it has all
    /// that the secondary may have and the other node not; 0: that cannot be said.
    pub parted: Option<u64>,
}

impl SecondRefusal {
    /// The pairs to send.
    #[must_use]
    pub fn encode(&self) -> Writer {
        let mut nv = sizes_and_counts(self.datasize, self.extentsize, self.localcnt, self.remotecnt);
        nv.str("errmsg", &self.errmsg);
        if let Some(parted) = self.parted {
            nv.u64("hast_parted", parted);
        }
        nv
    }
}

/// What a primary gets for its [`SecondHello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecondReply {
    /// The pair is connected.
    Answer(SecondAnswer),
    /// Refused.
    Refused(Refused),
}

/// As much of a [`SecondRefusal`] or [`Refusal`] as a primary needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason as the secondary words it.
    pub errmsg: String,
    /// [`SecondRefusal::parted`].
    pub parted: Option<u64>,
}

impl SecondReply {
    /// Reads the pairs.
    ///
    /// # Errors
    /// Neither a refusal nor a valid [`SecondAnswer`].
    pub fn decode(list: &List<'_>) -> Result<SecondReply, HandshakeError> {
        match errmsg(list) {
            Some(errmsg) => Ok(SecondReply::Refused(Refused { errmsg, parted: list.u64("hast_parted") })),
            None => SecondAnswer::decode(list).map(SecondReply::Answer),
        }
    }
}

/// Why a frame is no part of a handshake. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// A pair is absent or of the wrong type.
    #[error("no '{0}' field in the header")]
    Missing(&'static str),
    /// A token that cannot be one of ours.
    #[error("token of invalid size (expected {TOKEN_SIZE}, got {0})")]
    TokenSize(usize),
    /// A number outside what it can be.
    #[error("invalid '{field}' in the header ({value})")]
    Range {
        /// Name of the pair.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The map that came is not the map that was announced.
    #[error("activemap of {announced} bytes announced, {length} bytes received")]
    Map {
        /// Bytes announced by `mapsize`.
        announced: u32,
        /// Bytes of payload.
        length: usize,
    },
}

/// Every text that a refusal may carry, as the reference words it.
pub mod texts {
    /// There is no such resource.
    pub const NOT_CONFIGURED: &str = "Resource not configured.";
    /// The peer's address is not the resource's `remote`.
    pub const NO_ACCESS: &str = "No access to the resource.";
    /// The second connection's token is not the pending one.
    pub const TOKEN_MISMATCH: &str = "Token doesn't match.";
    /// Both nodes changed data while apart.
    pub const SPLIT_BRAIN: &str = "Split-brain condition!";

    /// The node is `role` (`init` or `primary`), where a secondary was looked for.
    #[must_use]
    pub fn not_secondary(role: &str) -> String {
        format!("Remote node acts as {role} for the resource and not as secondary.")
    }

    /// The secondary's disk is of no use, and why. Said to those who know `reasons`.
    #[must_use]
    pub fn provider_failed(why: &str) -> String {
        format!("The secondary's provider fails. {}.", why.trim_end_matches('.'))
    }

    /// Both nodes know who they are, and they are not parts of one resource.
    #[must_use]
    pub fn resuid_mismatch(primary: u64, secondary: u64) -> String {
        format!("Resource unique ID mismatch (primary={primary}, secondary={secondary}).")
    }
}

/// What answer and refusal of the second step have in common. The two sizes are signed on the wire.
fn sizes_and_counts(datasize: u64, extentsize: u32, localcnt: u64, remotecnt: u64) -> Writer {
    let mut nv = Writer::new();
    nv.i64("datasize", datasize.cast_signed())
        .i32("extentsize", extentsize.cast_signed())
        .u64("localcnt", localcnt)
        .u64("remotecnt", remotecnt);
    nv
}

fn resource(list: &List<'_>) -> Result<String, HandshakeError> {
    list.str("resource").map(str::to_owned).ok_or(HandshakeError::Missing("resource"))
}

fn version(list: &List<'_>) -> u8 {
    list.u8("version").unwrap_or(0).max(1)
}

fn token(bytes: &[u8]) -> Result<Token, HandshakeError> {
    bytes.try_into().map_err(|_| HandshakeError::TokenSize(bytes.len()))
}

fn put_extensions(nv: &mut Writer, ext: Extensions) {
    if !ext.is_empty() {
        nv.str("hast_ext", &ext.words());
    }
}

fn extensions(list: &List<'_>) -> Extensions {
    list.str("hast_ext").map_or(Extensions::NONE, Extensions::from_words)
}

fn put_boot(nv: &mut Writer, boot: Option<BootId>) {
    if let Some(boot) = boot {
        nv.u8_array("hast_boot", &boot);
    }
}

/// One of another size tells nothing, as if it were absent.
fn boot(list: &List<'_>) -> Option<BootId> {
    list.u8_array("hast_boot").and_then(|boot| boot.try_into().ok())
}

/// The `errmsg` string, in whatever encoding the peer's administrator uses.
fn errmsg(list: &List<'_>) -> Option<String> {
    let pair = list.find("errmsg").filter(|pair| pair.kind == hast_format::nv::Type::String)?;
    let text = pair.data.strip_suffix(&[0]).unwrap_or(pair.data);
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(writer: &Writer, decode: impl FnOnce(&List<'_>) -> T) -> T {
        decode(&List::parse(writer.as_bytes()).unwrap())
    }

    fn hello() -> SecondHello {
        SecondHello {
            resource: "disk0".into(),
            token: [7; 16],
            virgin: false,
            resuid: 1,
            localcnt: 2,
            remotecnt: 3,
            boot: None,
            parting: None,
            meeting: None,
        }
    }

    #[test]
    fn a_missing_or_zero_version_stands_for_one() {
        let mut nv = Writer::new();
        nv.str("resource", "disk0");
        assert_eq!(read(&nv, FirstHello::decode).unwrap().version, 1);
        nv.u8("version", 0);
        assert_eq!(read(&nv, FirstHello::decode).unwrap().negotiated(), 1);
        let newer = FirstHello { resource: "disk0".into(), version: 3, ext: Extensions::NONE };
        assert_eq!(read(&newer.encode(), FirstHello::decode).unwrap(), newer);
        assert_eq!(newer.negotiated(), 2);
    }

    #[test]
    fn headers_that_are_closed_on_are_errors() {
        assert_eq!(read(&Writer::new(), Hello::decode), Err(HandshakeError::Missing("resource")));
        let mut nv = Writer::new();
        nv.str("resource", "disk0").u8_array("token", &[1; 8]);
        assert_eq!(read(&nv, Hello::decode), Err(HandshakeError::TokenSize(8)));
        let mut nv = Writer::new();
        nv.u8_array("token", &[1; 16]);
        assert_eq!(read(&nv, Hello::decode), Err(HandshakeError::Missing("resource")));
    }

    #[test]
    fn a_token_of_another_type_makes_no_second_step() {
        let mut nv = Writer::new();
        nv.str("resource", "disk0").str("token", "0123456789abcdef");
        assert!(matches!(read(&nv, Hello::decode), Ok(Hello::First(_))));
    }

    #[test]
    fn answers_from_a_later_version_are_refused() {
        let answer = FirstAnswer { version: 3, token: [0; 16], ext: Extensions::NONE };
        assert_eq!(
            read(&answer.encode(), FirstReply::decode),
            Err(HandshakeError::Range { field: "version", value: 3 })
        );
    }

    #[test]
    fn virgin_is_a_matter_of_presence() {
        for virgin in [false, true] {
            let hello = SecondHello { virgin, ..hello() };
            assert_eq!(read(&hello.encode(), Hello::decode), Ok(Hello::Second(hello)));
        }
        let mut nv = hello().encode();
        nv.u64("virgin", 0);
        assert!(read(&nv, SecondHello::decode).unwrap().virgin);
    }

    #[test]
    fn answers_with_impossible_numbers_are_errors() {
        let good = SecondAnswer {
            datasize: 1 << 40,
            extentsize: 1 << 21,
            localcnt: 1,
            remotecnt: 2,
            virgin: true,
            syncsrc: SyncSource::Secondary,
            mapsize: 512,
            boot: None,
            peer_timeout: Some(5),
            met: Some(Met { last: 7 << 32, before: 6 << 32 }),
            zero_deletes: false,
        };
        assert_eq!(read(&good.encode(), SecondReply::decode), Ok(SecondReply::Answer(good.clone())));
        let negative = SecondAnswer { datasize: u64::MAX, ..good.clone() };
        assert_eq!(
            read(&negative.encode(), SecondReply::decode),
            Err(HandshakeError::Range { field: "datasize", value: -1 })
        );
        let mut nv = sizes_and_counts(1, 1, 1, 1);
        nv.u8("syncsrc", 3).u32("mapsize", 0);
        assert_eq!(read(&nv, SecondReply::decode), Err(HandshakeError::Range { field: "syncsrc", value: 3 }));
        let map = Buffer::from(vec![0; 512]);
        assert_eq!(good.map(Some(map.clone())), Ok(Some(map.clone())));
        assert_eq!(good.map(None), Err(HandshakeError::Map { announced: 512, length: 0 }));
        assert!(good.map(Some(map.slice(0..511))).is_err());
    }

    #[test]
    fn refusals_keep_text_and_wait() {
        let refusal = Refusal { errmsg: texts::not_secondary("primary"), wait: true };
        assert_eq!(read(&refusal.encode(), FirstReply::decode), Ok(FirstReply::Refused(refusal)));
        let refusal = SecondRefusal {
            datasize: 1,
            extentsize: 2,
            localcnt: 3,
            remotecnt: 4,
            errmsg: texts::SPLIT_BRAIN.into(),
            parted: None,
        };
        let errmsg = String::from("Split-brain condition!");
        for parted in [None, Some(0), Some(7)] {
            let refusal = SecondRefusal { parted, ..refusal.clone() };
            let expected = Refused { errmsg: errmsg.clone(), parted };
            assert_eq!(read(&refusal.encode(), SecondReply::decode), Ok(SecondReply::Refused(expected)));
            assert!(refusal.encode().as_bytes().starts_with(refusal_of_an_original().as_bytes()));
        }
    }

    #[test]
    fn that_deletes_leave_zeros_comes_last_and_is_said_with_a_one_alone() {
        let plain = SecondAnswer {
            datasize: 1 << 20,
            extentsize: 1 << 12,
            localcnt: 1,
            remotecnt: 2,
            virgin: false,
            syncsrc: SyncSource::Primary,
            mapsize: 0,
            boot: Some([3; 16]),
            peer_timeout: Some(5),
            zero_deletes: false,
            met: None,
        };
        let promising = SecondAnswer { zero_deletes: true, ..plain.clone() };
        assert_eq!(
            read(&promising.encode(), SecondReply::decode),
            Ok(SecondReply::Answer(promising.clone()))
        );
        assert!(promising.encode().as_bytes().starts_with(plain.encode().as_bytes()));
        assert_eq!(names(&promising.encode()).last().unwrap(), "hast_zero_deletes");
        for other in [0, 2, u8::MAX] {
            let mut nv = plain.encode();
            nv.u8("hast_zero_deletes", other);
            assert_eq!(read(&nv, SecondAnswer::decode), Ok(plain.clone()), "{other}");
        }
        let mut nv = plain.encode();
        nv.u32("hast_zero_deletes", 1);
        assert_eq!(read(&nv, SecondAnswer::decode), Ok(plain));
    }

    fn refusal_of_an_original() -> Writer {
        let mut nv = sizes_and_counts(1, 2, 3, 4);
        nv.str("errmsg", "Split-brain condition!");
        nv
    }

    #[test]
    fn when_the_nodes_parted_comes_last_and_whole() {
        let divergence = Some(Divergence { extentsize: 4096, here: 1, there: 2, both: 1, exact: true });
        for parting in
            [Parting { last: 1, next: 2, divergence: None }, Parting { last: 0, next: 9, divergence }]
        {
            let hello = SecondHello { parting: Some(parting), boot: Some([1; 16]), ..hello() };
            assert_eq!(read(&hello.encode(), SecondHello::decode), Ok(hello.clone()));
            let without = SecondHello { parting: None, ..hello.clone() };
            assert!(hello.encode().as_bytes().starts_with(without.encode().as_bytes()));
        }
        let mut nv = hello().encode();
        nv.u64("hast_parted", 1);
        assert_eq!(read(&nv, SecondHello::decode).unwrap().parting, None);
        nv.u64("hast_parting", 2).u32("hast_changed_extentsize", 1).u64("hast_changed_here", 1);
        let some = Parting { last: 1, next: 2, divergence: None };
        assert_eq!(read(&nv, SecondHello::decode).unwrap().parting, Some(some));
    }

    #[test]
    fn generations_come_last_and_whole() {
        let met = Met { last: 5 << 32 | 9, before: 4 << 32 };
        let hello = SecondHello { meeting: Some(Meeting { met, draw: 77, localcnt: 3 }), ..hello() };
        assert_eq!(read(&hello.encode(), SecondHello::decode), Ok(hello.clone()));
        let without = SecondHello { meeting: None, ..hello.clone() };
        assert!(hello.encode().as_bytes().starts_with(without.encode().as_bytes()));
        let mut nv = without.encode();
        nv.u64("hast_connection", 1).u64("hast_connection_before", 0);
        assert_eq!(read(&nv, SecondHello::decode).unwrap().meeting, None);
        nv.u32("hast_connection_draw", 2);
        let earlier = Meeting { met: Met { last: 1, before: 0 }, draw: 2, localcnt: 0 };
        assert_eq!(
            read(&nv, SecondHello::decode).unwrap().meeting,
            Some(earlier),
            "of an earlier version of ours"
        );
    }

    /// The names of the pairs, in their order.
    fn names(writer: &Writer) -> Vec<String> {
        let list = List::parse(writer.as_bytes()).unwrap();
        list.pairs().map(|pair| String::from_utf8(pair.name.to_vec()).unwrap()).collect()
    }

    #[test]
    fn extensions_come_after_all_that_an_original_says_or_not_at_all() {
        let plain = FirstHello { resource: "disk0".into(), version: 2, ext: Extensions::NONE };
        assert_eq!(names(&plain.encode()), ["resource", "version"]);
        let offering = FirstHello { ext: Extensions::SYNC_MARKS, ..plain.clone() };
        assert_eq!(names(&offering.encode()), ["resource", "version", "hast_ext"]);
        assert!(offering.encode().as_bytes().starts_with(plain.encode().as_bytes()));

        let plain = FirstAnswer { version: 2, token: [5; 16], ext: Extensions::NONE };
        assert_eq!(names(&plain.encode()), ["version", "token"]);
        let agreeing = FirstAnswer { ext: Extensions::SYNC_MARKS, ..plain };
        assert_eq!(names(&agreeing.encode()), ["version", "token", "hast_ext"]);

        let with_boot = SecondHello { boot: Some([9; 16]), ..hello() };
        assert_eq!(names(&with_boot.encode()).last().unwrap(), "hast_boot");
        assert!(with_boot.encode().as_bytes().starts_with(hello().encode().as_bytes()));
        assert_eq!(read(&with_boot.encode(), SecondHello::decode), Ok(with_boot));
    }

    #[test]
    fn what_an_extension_says_in_another_way_is_as_if_it_were_absent() {
        let mut nv = FirstHello { resource: "disk0".into(), version: 2, ext: Extensions::NONE }.encode();
        nv.u8("hast_ext", 1);
        assert_eq!(read(&nv, FirstHello::decode).unwrap().ext, Extensions::NONE);
        for size in [0, 15, 17] {
            let mut nv = hello().encode();
            nv.u8_array("hast_boot", &vec![1; size]);
            assert_eq!(read(&nv, SecondHello::decode), Ok(hello()));
        }
        let mut nv = hello().encode();
        nv.str("hast_boot", "0123456789abcdef");
        assert_eq!(read(&nv, SecondHello::decode), Ok(hello()));
    }
}
