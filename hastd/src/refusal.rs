//! What a primary hears that this node cannot serve, before an engine could tell it.

use hast_log::error_text;
use hast_net::extensions::Extensions;
use hast_net::frame;
use hast_net::handshake::SecondRefusal;
use socket2::SockRef;

/// Answers the second step of a primary, which waits on `out`, with the reason why it is refused. A primary that does not know
/// `reasons`, such as an original, sees the connection end.
pub(crate) fn turn_away(out: &SockRef<'_>, version: u8, ext: Extensions, errmsg: &str) {
    if !ext.contains(Extensions::REASONS) {
        return;
    }
    let (datasize, extentsize, localcnt, remotecnt) = (0, 0, 0, 0);
    let errmsg = errmsg.into();
    let refusal = SecondRefusal { datasize, extentsize, localcnt, remotecnt, errmsg, parted: None };
    let bytes = frame::encode(version, refusal.encode().as_bytes()).unwrap_or_default();
    // It is for the other node's administrator: one that does not take it at once goes without.
    if let Err(error) = out.send(&bytes) {
        log::debug!("The primary could not be told why: {}.", error_text(&error));
    }
}
