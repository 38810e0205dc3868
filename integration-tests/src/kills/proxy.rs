//! A TCP proxy in front of a link port. It can close connections, and it can stall them without closing them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Open,
    /// All connections are closed, and new ones are closed at once.
    Closed,
    /// Connections stay open and new ones are accepted, but no byte and no end of a connection passes.
    Stalled,
}

struct State {
    path: Path,
    next: u64,
    connections: HashMap<u64, [TcpStream; 2]>,
}

struct Shared {
    target: String,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running proxy. It has two threads per connection and runs until the program ends.
pub(super) struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy to `target` on any free port.
    pub(super) fn start(target: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let state = Mutex::new(State { path: Path::Open, next: 0, connections: HashMap::new() });
        let shared = Arc::new(Shared { target, state, changed: Condvar::new() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = accepting.clone();
                // A connection that cannot be carried is dropped, which closes it.
                std::thread::spawn(move || drop(shared.carry(stream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// The address of the proxy.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Closes every connection, and every new one, until [`heal`](Self::heal).
    pub(super) fn close(&self) {
        let mut state = self.shared.set(Path::Closed);
        for (_, streams) in state.connections.drain() {
            for stream in streams {
                // The connection may have ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Holds back every byte and every end of a connection in both directions until [`heal`](Self::heal).
    pub(super) fn stall(&self) {
        drop(self.shared.set(Path::Stalled));
    }

    /// Lets everything pass again. Bytes that were held back pass first.
    pub(super) fn heal(&self) {
        drop(self.shared.set(Path::Open));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, path: Path) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.path = path;
        self.changed.notify_all();
        state
    }

    /// Waits while the proxy is stalled.
    fn passable(&self) -> MutexGuard<'_, State> {
        let stalled = |state: &mut State| state.path == Path::Stalled;
        self.changed.wait_while(self.lock(), stalled).unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards the bytes of one connection until it ends.
    fn carry(&self, near: TcpStream) -> std::io::Result<()> {
        if self.passable().path == Path::Closed {
            return Ok(());
        }
        let far = TcpStream::connect(&self.target)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let both = [near.try_clone()?, far.try_clone()?];
        let number = {
            let mut state = self.lock();
            if state.path == Path::Closed {
                return Ok(());
            }
            state.next += 1;
            let number = state.next;
            state.connections.insert(number, both);
            number
        };
        std::thread::scope(|scope| {
            scope.spawn(|| self.relay(&near, &far));
            self.relay(&far, &near);
        });
        self.lock().connections.remove(&number);
        Ok(())
    }

    /// Forwards bytes and then the end of the connection. A reset counts as the end.
    fn relay(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            drop(self.passable());
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // The connection may have ended already.
        let _ = to.shutdown(Shutdown::Write);
    }
}
