//! Foreign texts as people are shown them.

/// A daemon's or a disk's text as it is, except that nothing in it can steer the terminal or look like
/// another line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
