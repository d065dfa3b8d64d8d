//! The judgement of a request's header: carried out, answered at once, or refused, and why.

use crate::command::Kind;
use crate::error::NbdError;
use crate::options::Negotiation;
use crate::wire::{RequestHeader, command, flag};

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Carry out a command that needs no data from the client.
    Command(Kind),
    /// Receive `length` bytes, then write them.
    Write { offset: u64, length: u32, fua: bool },
    /// Tell what of a range is a hole, in `one` run or in several.
    Status { offset: u64, length: u32, one: bool },
    /// Answer with an error, after skipping the data of a write.
    Refuse(NbdError, &'static str),
    /// Take no more requests.
    Disconnect,
}

/// Judges a request by what was agreed.
pub(crate) fn judge(header: &RequestHeader, agreed: &Negotiation) -> Verdict {
    let result = match header.command.get() {
        command::DISC => Ok(Verdict::Disconnect),
        command::READ => read(header, agreed),
        command::WRITE => write(header, agreed),
        command::FLUSH => flush(header),
        command::TRIM => trim(header, agreed),
        command::CACHE => cache(header, agreed),
        command::WRITE_ZEROES => write_zeroes(header, agreed),
        command::BLOCK_STATUS => block_status(header, agreed),
        _ => Err((NbdError::Inval, "this command is not supported")),
    };
    result.unwrap_or_else(|(error, text)| Verdict::Refuse(error, text))
}

type Refusal = (NbdError, &'static str);

fn read(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    // "Don't fragment" is always honoured: a read is answered in one chunk.
    let allowed = if agreed.structured { flag::DF } else { 0 };
    flags(header, allowed)?;
    payload(header, agreed)?;
    let (offset, length) = range(header, agreed, NbdError::Inval)?;
    Ok(Verdict::Command(Kind::Read { offset, length }))
}

fn write(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    flags(header, 0)?;
    writable(agreed)?;
    payload(header, agreed)?;
    let (offset, length) = range(header, agreed, NbdError::NoSpc)?;
    Ok(Verdict::Write { offset, length, fua: fua(header) })
}

fn flush(header: &RequestHeader) -> Result<Verdict, Refusal> {
    flags(header, 0)?;
    if header.offset.get() != 0 || header.length.get() != 0 {
        return Err((NbdError::Inval, "a flush takes no range"));
    }
    Ok(Verdict::Command(Kind::Flush))
}

fn trim(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    flags(header, 0)?;
    writable(agreed)?;
    let (offset, length) = range(header, agreed, NbdError::Inval)?;
    Ok(Verdict::Command(Kind::Trim { offset, length, fua: fua(header) }))
}

fn cache(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    flags(header, 0)?;
    let (offset, length) = range(header, agreed, NbdError::Inval)?;
    Ok(Verdict::Command(Kind::Cache { offset, length }))
}

fn write_zeroes(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    flags(header, flag::NO_HOLE | flag::FAST_ZERO)?;
    writable(agreed)?;
    if header.flags.get() & flag::FAST_ZERO != 0 {
        return Err((NbdError::NotSup, "zeroing is not known to be faster than writing"));
    }
    let (offset, length) = range(header, agreed, NbdError::NoSpc)?;
    let no_hole = header.flags.get() & flag::NO_HOLE != 0;
    Ok(Verdict::Command(Kind::WriteZeroes { offset, length, no_hole, fua: fua(header) }))
}

fn block_status(header: &RequestHeader, agreed: &Negotiation) -> Result<Verdict, Refusal> {
    flags(header, flag::REQ_ONE)?;
    if !agreed.allocation {
        return Err((NbdError::Inval, "no metadata context was selected"));
    }
    let (offset, length) = range(header, agreed, NbdError::Inval)?;
    Ok(Verdict::Status { offset, length, one: header.flags.get() & flag::REQ_ONE != 0 })
}

fn fua(header: &RequestHeader) -> bool {
    header.flags.get() & flag::FUA != 0
}

/// Clients may set FUA on every command; other flags only where they mean something.
fn flags(header: &RequestHeader, allowed: u16) -> Result<(), Refusal> {
    if header.flags.get() & !(allowed | flag::FUA) != 0 {
        return Err((NbdError::Inval, "the command has a flag that does not belong to it"));
    }
    Ok(())
}

fn writable(agreed: &Negotiation) -> Result<(), Refusal> {
    if agreed.export.read_only { Err((NbdError::Perm, "the export is read-only")) } else { Ok(()) }
}

fn payload(header: &RequestHeader, agreed: &Negotiation) -> Result<(), Refusal> {
    if header.length.get() > agreed.export.maximum_payload {
        return Err((NbdError::Inval, "the request is longer than the maximum payload"));
    }
    Ok(())
}

/// The request's range, checked; `beyond` is the error for one that is not inside the export.
fn range(header: &RequestHeader, agreed: &Negotiation, beyond: NbdError) -> Result<(u64, u32), Refusal> {
    let (offset, length) = (header.offset.get(), header.length.get());
    let block = agreed.export.minimum_block;
    if length == 0 {
        return Err((NbdError::Inval, "the request is empty"));
    }
    if !offset.is_multiple_of(u64::from(block)) || !length.is_multiple_of(block) {
        return Err((NbdError::Inval, "the request is not aligned to the minimum block size"));
    }
    match offset.checked_add(u64::from(length)) {
        Some(end) if end <= agreed.export.size => Ok((offset, length)),
        _ => Err((beyond, "the request reaches beyond the end of the device")),
    }
}
