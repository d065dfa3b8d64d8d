//! The thread that drives the reactor, and the one that takes its place when a disk operation holds it up.
//!
//! Owns who that is. An operation that is likely to be over at once is carried out by the leading thread itself
//! (`super::pace`), but a disk may hang at the very moment at which it was quick, and a worker that does nothing else
//! meanwhile looks dead to the other node. So the reactor is laid down here while its thread is away, and if that does
//! not come back soon another one goes on with it; the operation is then reported like any that a disk thread has
//! carried out.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use polling::Events;

use super::reactor::{Reactor, Turn};
use crate::exit;

/// How often it is looked whether the same operation is still on: one that lasts is found after once or twice as long.
const TICK: Duration = Duration::from_millis(50);
/// Ticks without any operation after which nobody looks until there is one.
const QUIET: u32 = 20;

/// Drives the reactor to its end; returns the worker's exit code.
///
/// # Errors
///
/// When no thread can be started.
pub(super) fn drive(mut reactor: Reactor) -> io::Result<i32> {
    reactor.begin();
    let post = Arc::new(Post::default());
    let first = post.leave(Box::new(reactor));
    start(&post, first)?;
    Ok(watch(&post, first))
}

/// Where the reactor lies while its thread is away.
#[derive(Default)]
struct Post {
    state: Mutex<State>,
    /// The end has come, or somebody has left after a quiet time.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    reactor: Option<Box<Reactor>>,
    /// How often it has been laid down.
    absences: u64,
    /// Nobody looks for operations that last.
    unwatched: bool,
    end: Option<i32>,
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can fail half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays the reactor down; returns the number of this absence.
    fn leave(&self, reactor: Box<Reactor>) -> u64 {
        let mut state = self.lock();
        state.reactor = Some(reactor);
        state.absences = state.absences.wrapping_add(1);
        if std::mem::take(&mut state.unwatched) {
            self.changed.notify_one();
        }
        state.absences
    }

    /// Takes the reactor up, unless somebody else has since this absence began.
    fn take(&self, absence: u64) -> Option<Box<Reactor>> {
        let mut state = self.lock();
        let same = state.absences == absence;
        state.reactor.take_if(|_| same)
    }

    fn end(&self, code: i32) {
        self.lock().end = Some(code);
        self.changed.notify_one();
    }
}

/// Starts a thread that takes the place of the one that is absent.
fn start(post: &Arc<Post>, absence: u64) -> io::Result<()> {
    let post = Arc::clone(post);
    thread::Builder::new().name("reactor".to_owned()).spawn(move || {
        if let Some(reactor) = post.take(absence) {
            let _alarm = Alarm(&post);
            lead(&post, reactor);
        }
    })?;
    Ok(())
}

/// Sees to it that a thread which panics is not waited for.
struct Alarm<'a>(&'a Post);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end(exit::SOFTWARE);
        }
    }
}

/// Drives the reactor to its end, or until somebody else does.
fn lead(post: &Post, mut reactor: Box<Reactor>) {
    let hands = reactor.hands();
    let mut events = Events::new();
    loop {
        match reactor.turn(&mut events) {
            Turn::End(code) => {
                drop(reactor);
                return post.end(code);
            }
            Turn::Operate(id, op) => {
                let absence = post.leave(reactor);
                let finished = hands.carry_out(id, op);
                let Some(back) = post.take(absence) else { return hands.hand_in(finished) };
                reactor = back;
                reactor.finish(finished);
            }
        }
    }
}

/// Looks for operations that last, until the end; returns the exit code. The reactor's absence until the `first` thread
/// has come is none.
fn watch(post: &Arc<Post>, first: u64) -> i32 {
    let mut state = post.lock();
    let (mut last, mut quiet, mut refused) = (first, 0, first);
    loop {
        if let Some(code) = state.end {
            return code;
        }
        if state.unwatched {
            state = post.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        (state, _) = post.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
        quiet = if state.absences == last { quiet + 1 } else { 0 };
        last = state.absences;
        state.unwatched = quiet >= QUIET && state.reactor.is_none();
        if quiet == 0 || last == first {
            continue;
        }
        let Some(reactor) = &mut state.reactor else { continue };
        reactor.overdue(TICK);
        // Whoever comes back is not to wait for the log.
        drop(state);
        match start(post, last) {
            Ok(()) => log::debug!("The disk makes an operation wait: another thread sees to the rest."),
            Err(error) if refused != last => {
                refused = last;
                log::warn!("Unable to start a thread: {}.", hast_log::error_text(&error));
            }
            Err(_) => {}
        }
        state = post.lock();
    }
}
