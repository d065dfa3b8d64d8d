//! A path as a story.

use std::fmt::Write as _;

use crate::explore::Failure;
use crate::model::Action;
use crate::state::{Link, Node, State};
use crate::sync::Fails;

/// The story of a failure, one line a step.
#[must_use]
pub fn tell(failure: &Failure, extents: usize) -> String {
    let mut text = String::new();
    let mut number = 0;
    let mut states = failure.path.iter().peekable();
    if let Some((first, _)) = states.peek() {
        let _ = writeln!(text, "    {}", line(first, extents));
    }
    while let Some((state, action)) = states.next() {
        let (Some(action), Some((next, _))) = (action, states.peek()) else { continue };
        number += 1;
        let _ = writeln!(text, "{number:>2}. {}", happens(state, next, *action));
        let _ = writeln!(text, "    {}", line(next, extents));
    }
    let _ = writeln!(text, "Broken: {}.", failure.property);
    if let Some((last, _)) = failure.path.last() {
        let may: Vec<String> = (0..extents).map(|extent| values(last.ghost.may[extent])).collect();
        let _ = writeln!(text, "Extents may hold: {}.", may.join("; "));
    }
    text
}

/// The values of a set.
fn values(set: u16) -> String {
    let values: Vec<String> =
        (0..16).filter(|value| set & (1 << value) != 0).map(|value| format!("{value}")).collect();
    values.join(" or ")
}

/// Both nodes in a line.
fn line(state: &State, extents: usize) -> String {
    let [a, b] = [0, 1].map(|node| node_line(&state.nodes[node], extents));
    let link = match state.link {
        Link::Down => "apart",
        Link::Up { .. } => "connected",
        _ => "handshake",
    };
    format!("a: {a} | b: {b} | {link}")
}

fn node_line(node: &Node, extents: usize) -> String {
    let data: Vec<String> = node.disk.data.iter().take(extents).map(cached).collect();
    let (meta, role) = match &node.primary {
        Some(engine) => (engine.meta, "primary"),
        None => (node.disk.meta.now, "secondary"),
    };
    let map: String =
        (0..extents).map(|e| if node.disk.map.now & (1 << e) == 0 { '-' } else { 'd' }).collect();
    let mark = if meta.mark { ", out of date" } else { "" };
    format!("{role}, counts {}/{}, map {map}, data {}{mark}", meta.local, meta.remote, data.join(" "))
}

/// A value, with what a loss of power may bring back.
fn cached(data: &crate::state::Cached<u8>) -> String {
    match data.older.as_slice() {
        [] => format!("{}", data.now),
        older => format!("{}({older:?} on the medium)", data.now),
    }
}

/// What happens, in words.
fn happens(state: &State, next: &State, action: Action) -> String {
    let name = |node: usize| if node == 0 { 'a' } else { 'b' };
    let p = state.primary().map_or('-', name);
    let s = if p == 'a' { 'b' } else { 'a' };
    let write = |at: usize| {
        let engine = state.primary().and_then(|p| state.nodes[p].primary.as_ref());
        engine
            .and_then(|engine| engine.writes.get(at))
            .map_or(String::new(), |write| format!("write {} (extent {})", write.value, write.extent))
    };
    let text = match action {
        Action::Write(extent) => format!("the client asks {p} for write {} to extent {extent}", next.written),
        Action::MapWritten => format!("{p}'s map is durable"),
        Action::Saved => format!("{p}'s metadata is saved"),
        Action::StoredHere(at) => format!("{p}'s disk has taken {}", write(at)),
        Action::FailedHere(at) => format!("{p}'s disk fails {}", write(at)),
        Action::Received(at) => format!("{s} has received {}, and says so", write(at)),
        Action::StoredThere(at) => format!("{s}'s disk has taken {}", write(at)),
        Action::Confirmed(at) => format!("{p} hears that {s} has stored {}", write(at)),
        Action::FailedThere(at) => format!("{s}'s disk fails {}, and {p} hears of it", write(at)),
        Action::Flush(client, fails) => {
            let whose = if client { "the client asks for a flush" } else { "a flush begins" };
            let how = match fails {
                Fails::Nothing => String::new(),
                Fails::Here => format!(", which fails on {p}"),
                Fails::There => format!(", which fails on {s}"),
                Fails::Everywhere => ", which fails on both".into(),
                Fails::CutOff => format!(", which never reaches {s}"),
            };
            format!("{whose}{how}")
        }
        Action::SaveFailed => format!("{p}'s metadata cannot be saved"),
        Action::Read(extent, false) => format!("the client reads extent {extent}"),
        Action::Read(extent, true) => format!("the client reads extent {extent}, and {p}'s disk cannot"),
        Action::ReadThere => format!("{s} has read it"),
        Action::ReadAnswered(value) => format!("{p} hears that {s} has read {value}"),
        Action::Repaired(true) => format!("{p} has written back what was read"),
        Action::Repaired(false) => format!("{p}'s disk fails to write back what was read"),
        Action::Told(at) => format!("{s} writes down that it alone has {}", write(at)),
        Action::Doubted => format!("{s} writes down that it may have lost something"),
        Action::DecideInVain => format!("{s}'s first flush fails, and its worker ends"),
        Action::Snapshot(node) => format!("{}'s disk is copied", name(node)),
        Action::RollBack => {
            let node = state.snapshot.as_ref().map_or('-', |snapshot| name(snapshot.node));
            format!("{node}'s disk is set back to the copy")
        }
        Action::Flushed => "the flush has ended".into(),
        Action::Rewritten(node) => format!("{} writes again what its disk may have dropped", name(node)),
        Action::Hello => format!("{p} connects to {s} and says its counts"),
        Action::Decide => format!("{s} compares the counts"),
        Action::Adopt => format!("{s} takes the resuid over"),
        Action::Merge => format!("{p} merges {s}'s map"),
        Action::Mark => format!("{s} writes down that it is out of date"),
        Action::Copy(extent) => format!("extent {extent} is copied"),
        Action::SyncDone => format!("{s} writes the equal counts down"),
        Action::Cut => "the connection breaks".into(),
        Action::Power(node, _) => format!("{} loses power", name(node)),
        Action::Kill(node) => format!("{}'s worker is killed", name(node)),
        Action::Demote => format!("{p} becomes secondary"),
        Action::Promote(node, false) => format!("{} becomes primary", name(node)),
        Action::Promote(node, true) => format!("{} becomes primary by force", name(node)),
        Action::Create(node) => format!("{} is created anew", name(node)),
    };
    let complete = completed(state, next);
    if complete.is_empty() { text } else { format!("{text}; the client hears that {complete} is complete") }
}

/// The writes of which the client hears in this step.
fn completed(state: &State, next: &State) -> String {
    let heard = (0..crate::state::EXTENTS).filter(|extent| {
        let (before, after) = (state.ghost.may[*extent], next.ghost.may[*extent]);
        after.count_ones() == 1 && before != after
    });
    let heard: Vec<String> =
        heard.map(|extent| format!("write {}", values(next.ghost.may[extent]))).collect();
    heard.join(" and ")
}
