//! The network between two nodes: relays that count, and that can be cut or stalled.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::loopback::PORT;
use crate::{Context, Failure, Loopback};

/// A link with one relay per direction of connecting. Each node's `remote` is the link's own address
/// on its side, and each node sees the other's connections come from there, so that hastd's check of
/// the peer's address holds.
#[derive(Debug)]
pub struct Link {
    toward_a: Loopback,
    toward_b: Loopback,
    from_a: Relay,
    from_b: Relay,
}

impl Link {
    /// A link between nodes that listen on these addresses.
    pub fn between(a: IpAddr, b: IpAddr) -> Result<Link, Failure> {
        let (toward_a, toward_b) = (Loopback::reserve()?, Loopback::reserve()?);
        let port = |ip| SocketAddr::new(ip, PORT);
        let from_a = Relay::start(toward_b.hast(), port(b), toward_a.ip())?;
        let from_b = Relay::start(toward_a.hast(), port(a), toward_b.ip())?;
        Ok(Link { toward_a, toward_b, from_a, from_b })
    }

    /// The address at which node b finds node a.
    pub fn toward_a(&self) -> &Loopback {
        &self.toward_a
    }

    /// The address at which node a finds node b.
    pub fn toward_b(&self) -> &Loopback {
        &self.toward_b
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.from_a.set(State::Cut);
        self.from_b.set(State::Cut);
    }

    /// Keeps connections open but lets nothing through, as a dead host does.
    pub fn stall(&self) {
        self.from_a.set(State::Stalled);
        self.from_b.set(State::Stalled);
    }

    /// Lets everything through again.
    pub fn restore(&self) {
        self.from_a.set(State::Open);
        self.from_b.set(State::Open);
    }

    /// Delays what new connections carry by so much each way.
    pub fn delay(&self, each_way: Duration) {
        self.from_a.delay(each_way);
        self.from_b.delay(each_way);
    }

    /// Bytes that have gone to node b and to node a over connections that node a opened.
    pub fn bytes_from_a(&self) -> (u64, u64) {
        self.from_a.bytes()
    }

    /// Bytes that have gone to node a and to node b over connections that node b opened.
    pub fn bytes_from_b(&self) -> (u64, u64) {
        self.from_b.bytes()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    Stalled,
    Cut,
    Stopped,
}

/// Accepts on one address and carries every connection to another.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    listen: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    sockets: Mutex<Vec<TcpStream>>,
    delay: Mutex<Duration>,
    forth: AtomicU64,
    back: AtomicU64,
}

impl Relay {
    /// Starts a relay from `listen` to `target`, whose connections to the target come from `source`.
    pub fn start(listen: SocketAddr, target: SocketAddr, source: IpAddr) -> Result<Relay, Failure> {
        let listener = TcpListener::bind(listen).context(listen)?;
        let listen = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Open),
            changed: Condvar::new(),
            sockets: Mutex::new(Vec::new()),
            delay: Mutex::new(Duration::ZERO),
            forth: AtomicU64::new(0),
            back: AtomicU64::new(0),
        });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &for_acceptor, target, source));
        Ok(Relay { shared, listen, acceptor: Some(acceptor) })
    }

    /// The address that it accepts on.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Delays what new connections carry by so much each way.
    pub fn delay(&self, each_way: Duration) {
        *lock(&self.shared.delay) = each_way;
    }

    /// Bytes carried to the target, and back from it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.forth.load(Ordering::Relaxed), self.shared.back.load(Ordering::Relaxed))
    }

    fn set(&self, state: State) {
        *lock(&self.shared.state) = state;
        self.shared.changed.notify_all();
        if matches!(state, State::Cut | State::Stopped) {
            self.shared.drop_connections();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set(State::Stopped);
        // Wakes the acceptor, which then sees the state; it is gone already if this fails.
        let _ = TcpStream::connect(self.listen);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn drop_connections(&self) {
        for socket in lock(&self.sockets).drain(..) {
            // A reset, not an orderly end: a broken link delivers nothing more.
            let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Waits while the link is stalled; false when the connection has no future.
    fn may_pass(&self) -> bool {
        let mut state = lock(&self.state);
        while *state == State::Stalled {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state == State::Open
    }
}

/// A lock whose holder panicked is still good: every value behind it is a plain one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, target: SocketAddr, source: IpAddr) {
    for near in listener.incoming() {
        match *lock(&shared.state) {
            State::Stopped => return,
            State::Cut => continue,
            State::Open | State::Stalled => {}
        }
        let Ok(near) = near else { continue };
        // A target that refuses looks to the peer like a connection that ends at once.
        let Ok(far) = connect_from(source, target) else { continue };
        let ends = (near.try_clone(), near.try_clone(), far.try_clone(), far.try_clone());
        let (Ok(near_read), Ok(near_kept), Ok(far_read), Ok(far_kept)) = ends else { continue };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        lock(&shared.sockets).extend([near_kept, far_kept]);
        let (forth, back) = (Arc::clone(shared), Arc::clone(shared));
        std::thread::spawn(move || carry(near_read, far, &forth, |shared| &shared.forth));
        std::thread::spawn(move || carry(far_read, near, &back, |shared| &shared.back));
    }
}

/// Connects to `target` from the address `source`.
pub fn connect_from(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

/// Copies one direction until it ends, and passes the end on.
fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Arc<Shared>, count: fn(&Shared) -> &AtomicU64) {
    let delay = *lock(&shared.delay);
    if !delay.is_zero() {
        return carry_late(from, to, shared, count, delay);
    }
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() || !shared.may_pass() || to.write_all(bytes).is_err() {
            break;
        }
        count(shared).fetch_add(length as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// How much may be under way on a link with delay, in pieces of at most 64 KiB.
const UNDER_WAY: usize = 1024;

/// The same, each piece so much later. Both ends are full of what is under way, so that the delay costs time
/// and no throughput.
fn carry_late(
    mut from: TcpStream,
    to: TcpStream,
    shared: &Arc<Shared>,
    count: fn(&Shared) -> &AtomicU64,
    delay: Duration,
) {
    let (sender, receiver) = sync_channel(UNDER_WAY);
    let shared = Arc::clone(shared);
    let writer = std::thread::spawn(move || write_late(&receiver, to, &shared, count));
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer) {
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if bytes.is_empty() || sender.send((Instant::now() + delay, bytes)).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
    let _ = from.shutdown(Shutdown::Read);
}

fn write_late(
    pieces: &Receiver<(Instant, Vec<u8>)>,
    mut to: TcpStream,
    shared: &Shared,
    count: fn(&Shared) -> &AtomicU64,
) {
    for (due, bytes) in pieces {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if !shared.may_pass() || to.write_all(&bytes).is_err() {
            break;
        }
        count(shared).fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn a_relay_carries_counts_and_cuts() {
        let target = echo();
        let localhost: IpAddr = "127.0.0.1".parse().unwrap();
        let any = SocketAddr::new(localhost, 0);
        let relay = Relay::start(any, target.local_addr().unwrap(), localhost).unwrap();
        let mut near = TcpStream::connect(relay.address()).unwrap();
        let (mut far, _) = target.accept().unwrap();
        near.write_all(b"hello").unwrap();
        let mut buffer = [0; 5];
        far.read_exact(&mut buffer).unwrap();
        far.write_all(b"yes").unwrap();
        near.read_exact(&mut buffer[..3]).unwrap();
        assert_eq!(&buffer, b"yeslo");
        crate::wait_until("the counts", crate::SHORT, || Ok(relay.bytes() == (5, 3))).unwrap();
        relay.set(State::Cut);
        assert!(!matches!(near.read(&mut buffer), Ok(n) if n > 0), "a cut link delivers nothing");
        let mut refused = TcpStream::connect(relay.address()).unwrap();
        assert!(!matches!(refused.read(&mut buffer), Ok(n) if n > 0));
        relay.set(State::Open);
        let mut again = TcpStream::connect(relay.address()).unwrap();
        let (mut far, _) = target.accept().unwrap();
        again.write_all(b"x").unwrap();
        far.read_exact(&mut buffer[..1]).unwrap();
    }

    #[test]
    fn a_delay_costs_time_and_no_bytes() {
        let target = echo();
        let localhost: IpAddr = "127.0.0.1".parse().unwrap();
        let relay = Relay::start((localhost, 0).into(), target.local_addr().unwrap(), localhost).unwrap();
        relay.delay(Duration::from_millis(20));
        let mut near = TcpStream::connect(relay.address()).unwrap();
        let (mut far, _) = target.accept().unwrap();
        let begin = Instant::now();
        let sent = vec![7; 300_000];
        near.write_all(&sent).unwrap();
        let mut received = vec![0; sent.len()];
        far.read_exact(&mut received).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20) && received == sent);
    }
}
