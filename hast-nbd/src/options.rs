//! The negotiation: what each option asks and what it is answered.

use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, Unaligned};

use crate::error::SessionError;
use crate::export::Export;
use crate::reply::Output;
use crate::wire::{self, Cursor, handshake, info, option, option_reply, transmission};

/// The id under which `base:allocation` is selected.
pub(crate) const ALLOCATION_ID: u32 = 1;

/// What has been agreed with the client so far.
#[derive(Debug)]
pub(crate) struct Negotiation {
    pub(crate) export: Export,
    /// The client declined the zeroes after the answer to `EXPORT_NAME`.
    pub(crate) no_zeroes: bool,
    /// Structured replies were agreed.
    pub(crate) structured: bool,
    /// `base:allocation` was selected.
    pub(crate) allocation: bool,
}

/// What comes after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another option.
    Option,
    /// Commands.
    Transmission,
    /// Nothing: the client takes its leave.
    Goodbye,
}

/// An error reply: its type and a text for the client's user.
type Refusal = (u32, &'static str);

const MALFORMED: Refusal = (option_reply::ERR_INVALID, "the option's data is malformed");
const UNKNOWN: Refusal = (option_reply::ERR_UNKNOWN, "there is no such export here");

impl Negotiation {
    pub(crate) fn new(export: Export) -> Negotiation {
        Negotiation { export, no_zeroes: false, structured: false, allocation: false }
    }

    /// Takes the client's answer to the greeting.
    pub(crate) fn client_flags(&mut self, flags: u32) -> Result<(), SessionError> {
        let offered = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & !offered != 0 {
            return Err(SessionError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        Ok(())
    }

    /// Whether the data of `option` is worth keeping; that of others is skipped and the option refused.
    pub(crate) fn knows(option: u32) -> bool {
        matches!(
            option,
            option::EXPORT_NAME
                | option::ABORT
                | option::LIST
                | option::INFO
                | option::GO
                | option::STRUCTURED_REPLY
                | option::LIST_META_CONTEXT
                | option::SET_META_CONTEXT
        )
    }

    /// Answers an option whose data was skipped: unknown, or more than any sensible option carries.
    pub(crate) fn skipped(&mut self, option: u32, out: &mut Output) -> Result<Next, SessionError> {
        match option {
            option::EXPORT_NAME => return Err(SessionError::UnknownExport("(a very long name)".to_owned())),
            option::ABORT => {
                out.option_reply(option, option_reply::ACK, &[]);
                return Ok(Next::Goodbye);
            }
            option::SET_META_CONTEXT => self.allocation = false,
            _ => {}
        }
        let (kind, text) = if Negotiation::knows(option) {
            (option_reply::ERR_TOO_BIG, "the option's data is too long")
        } else {
            (option_reply::ERR_UNSUP, "this option is not supported")
        };
        out.option_reply(option, kind, &[text.as_bytes()]);
        Ok(Next::Option)
    }

    /// Answers an option that is known.
    pub(crate) fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Output,
    ) -> Result<Next, SessionError> {
        let answered = match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => Ok(Next::Goodbye),
            option::LIST => self.list(data, out),
            option::INFO => self.info(option, data, out).map(|()| Next::Option),
            option::GO => self.info(option, data, out).map(|()| Next::Transmission),
            option::STRUCTURED_REPLY => self.structured_reply(data),
            option::LIST_META_CONTEXT => self.list_meta_context(data, out),
            option::SET_META_CONTEXT => self.set_meta_context(data, out),
            _ => return self.skipped(option, out),
        };
        match answered {
            Ok(next) => {
                out.option_reply(option, option_reply::ACK, &[]);
                Ok(next)
            }
            Err((kind, text)) => {
                out.option_reply(option, kind, &[text.as_bytes()]);
                Ok(Next::Option)
            }
        }
    }

    fn export_name(&mut self, name: &[u8], out: &mut Output) -> Result<Next, SessionError> {
        if !self.export.answers_to(name) {
            let shown = String::from_utf8_lossy(name.get(..name.len().min(256)).unwrap_or_default());
            return Err(SessionError::UnknownExport(shown.into_owned()));
        }
        let zeroes = if self.no_zeroes { 0 } else { wire::EXPORT_NAME_ZEROES };
        out.export_name(self.export.size, self.transmission_flags(), zeroes);
        Ok(Next::Transmission)
    }

    fn list(&self, data: &[u8], out: &mut Output) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        let name = self.export.name.as_bytes();
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
        out.option_reply(option::LIST, option_reply::SERVER, &[&length, name]);
        Ok(Next::Option)
    }

    fn info(&self, option: u32, data: &[u8], out: &mut Output) -> Result<(), Refusal> {
        let (name, wants_name) = parse_info(data).ok_or(MALFORMED)?;
        if !self.export.answers_to(name) {
            return Err(UNKNOWN);
        }
        let mut say = |item: &[u8]| out.option_reply(option, option_reply::INFO, &[item]);
        say(InfoExport {
            kind: info::EXPORT.into(),
            size: self.export.size.into(),
            flags: self.transmission_flags().into(),
        }
        .as_bytes());
        // Told whether asked for or not: our limits are not the ones that a client would assume.
        say(InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: self.export.minimum_block.into(),
            preferred: self.export.preferred_block.into(),
            maximum: self.export.maximum_payload.into(),
        }
        .as_bytes());
        if wants_name {
            let kind = info::NAME.to_be_bytes();
            out.option_reply(option, option_reply::INFO, &[&kind, self.export.name.as_bytes()]);
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<Next, Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        self.structured = true;
        Ok(Next::Option)
    }

    fn list_meta_context(&self, data: &[u8], out: &mut Output) -> Result<Next, Refusal> {
        let queries = self.meta_context_queries(data)?;
        let all = queries.is_empty();
        if all || queries.iter().any(|&query| query == b"base:" || query == wire::BASE_ALLOCATION.as_bytes())
        {
            meta_context(option::LIST_META_CONTEXT, 0, out);
        }
        Ok(Next::Option)
    }

    fn set_meta_context(&mut self, data: &[u8], out: &mut Output) -> Result<Next, Refusal> {
        // Whatever was selected before is gone, also when this selection fails.
        self.allocation = false;
        let queries = self.meta_context_queries(data)?;
        if queries.contains(&wire::BASE_ALLOCATION.as_bytes()) {
            self.allocation = true;
            meta_context(option::SET_META_CONTEXT, ALLOCATION_ID, out);
        }
        Ok(Next::Option)
    }

    fn meta_context_queries<'a>(&self, data: &'a [u8]) -> Result<Vec<&'a [u8]>, Refusal> {
        if !self.structured {
            return Err((option_reply::ERR_INVALID, "metadata contexts need structured replies first"));
        }
        let (name, queries) = parse_meta_context(data).ok_or(MALFORMED)?;
        if self.export.answers_to(name) { Ok(queries) } else { Err(UNKNOWN) }
    }

    fn transmission_flags(&self) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_WRITE_ZEROES
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE;
        if self.structured {
            flags |= transmission::SEND_DF;
        }
        if self.export.read_only {
            flags |= transmission::READ_ONLY;
        }
        if self.export.trims {
            flags |= transmission::SEND_TRIM;
        }
        flags
    }
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct InfoExport {
    kind: U16,
    size: U64,
    flags: U16,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct InfoBlockSize {
    kind: U16,
    minimum: U32,
    preferred: U32,
    maximum: U32,
}

fn meta_context(option: u32, id: u32, out: &mut Output) {
    let name = wire::BASE_ALLOCATION.as_bytes();
    out.option_reply(option, option_reply::META_CONTEXT, &[&id.to_be_bytes(), name]);
}

/// The export's name, and whether the export's canonical name is among the information asked for.
fn parse_info(data: &[u8]) -> Option<(&[u8], bool)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?;
    let count = cursor.u16()?;
    let mut wants_name = false;
    for _ in 0..count {
        wants_name |= cursor.u16()? == info::NAME;
    }
    cursor.is_empty().then_some((name, wants_name))
}

/// The export's name and the queries.
fn parse_meta_context(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?;
    let count = cursor.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // Every query takes at least four bytes, so the data bounds the list whatever `count` says.
        queries.push(cursor.string()?);
    }
    cursor.is_empty().then_some((name, queries))
}
