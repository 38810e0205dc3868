//! A hub of models on this machine, with the faults of networks and hubs. A second port plays the host that a hub sends clients to for large
//! files.

mod answer;
mod faults;
mod home;
mod tls;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub use faults::Fault;
pub use home::HubHome;
pub use tls::{ConnectProxy, certificate};

/// A repository at one commit: the bytes of its files by path.
pub type RepoFiles = BTreeMap<String, Vec<u8>>;

/// The place of faults of the host for large files.
pub const ELSEWHERE: &str = "elsewhere:";

/// A request that the hub has got.
#[derive(Clone, Debug)]
pub struct HubRequest {
    /// The method.
    pub method: String,
    /// The path with the query.
    pub path: String,
    /// The first byte that is asked for.
    pub start: u64,
    /// Whether it has a token.
    pub has_token: bool,
    /// Whether it came to the port for large files.
    pub is_elsewhere: bool,
    /// Bytes of a file that were sent.
    pub sent: u64,
}

/// A hub on this machine. Its threads end with the process.
#[derive(Clone)]
pub struct FakeHub {
    /// The address of the hub.
    pub address: SocketAddr,
    /// The address of the host for large files.
    pub elsewhere: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<HubState>,
    resumed: Condvar,
}

#[derive(Default)]
struct HubState {
    /// Commits of models by id and commit.
    commits: BTreeMap<(String, String), RepoFiles>,
    /// The newest commit of each model.
    main: BTreeMap<String, String>,
    faults: Vec<(String, Fault)>,
    requests: Vec<HubRequest>,
    /// Large files are sent from the other port.
    redirects: bool,
    /// The token without which models are not shown.
    token: Option<String>,
    sent: u64,
    alarm: Option<Alarm>,
    is_paused: bool,
}

/// Says once that a number of bytes has been sent.
struct Alarm {
    at: u64,
    pauses: bool,
    heard: Sender<()>,
}

impl FakeHub {
    /// Starts a hub without models.
    ///
    /// # Errors
    /// No port can be opened.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (hub, elsewhere) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let this = Self { address: hub.local_addr()?, elsewhere: elsewhere.local_addr()?, shared };
        for (listener, is_elsewhere) in [(hub, false), (elsewhere, true)] {
            let this = this.clone();
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let this = this.clone();
                    thread::spawn(move || {
                        // A client that is killed leaves a broken connection.
                        let _ = this.serve(&socket, is_elsewhere);
                    });
                }
            });
        }
        Ok(this)
    }

    /// The URL of the hub.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a commit into a repository and makes it the newest one. Returns its name.
    pub fn put(&self, repo: &str, files: RepoFiles) -> String {
        let mut hasher = Sha1::new();
        files.iter().for_each(|(path, bytes)| {
            hasher.update(path);
            hasher.update(bytes);
        });
        let commit = hex(&hasher.finalize());
        let mut state = self.state();
        state.commits.insert((repo.to_owned(), commit.clone()), files);
        state.main.insert(repo.to_owned(), commit.clone());
        commit
    }

    /// Has all requests whose path contains `place` fail in this way. Faults of the same place wait for each other.
    pub fn fault(&self, place: &str, fault: Fault) {
        self.state().faults.push((place.to_owned(), fault));
    }

    /// Has large files sent from the other port.
    pub fn redirect(&self) {
        self.state().redirects = true;
    }

    /// Shows models only to requests with this token.
    pub fn require(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<HubRequest> {
        std::mem::take(&mut self.state().requests)
    }

    /// A message comes when `bytes` more bytes of files have been sent. If `pauses`, nothing is sent after that until [`resume`](Self::resume).
    pub fn alarm(&self, bytes: u64, pauses: bool) -> Receiver<()> {
        let (heard, hears) = channel();
        let mut state = self.state();
        let at = state.sent + bytes;
        state.alarm = Some(Alarm { at, pauses, heard });
        hears
    }

    /// Sends on, and forgets an alarm that has not come.
    pub fn resume(&self) {
        let mut state = self.state();
        (state.is_paused, state.alarm) = (false, None);
        drop(state);
        self.shared.resumed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, HubState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that are about to be sent, and waits while the hub is paused.
    fn count(&self, request: usize, bytes: usize) {
        let mut state = self.state();
        state.sent += bytes as u64;
        if let Some(request) = state.requests.get_mut(request) {
            request.sent += bytes as u64;
        }
        let sent = state.sent;
        if let Some(alarm) = state.alarm.take_if(|alarm| alarm.at <= sent) {
            state.is_paused = alarm.pauses;
            let _ = alarm.heard.send(());
        }
        while state.is_paused {
            state = self.shared.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Serves one request. The answer closes the connection.
    fn serve(&self, socket: &TcpStream, is_elsewhere: bool) -> Result<()> {
        socket.set_nodelay(true)?;
        let mut lines = BufReader::new(socket).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut start, mut token) = (0, None);
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "range" => start = value.trim().trim_start_matches("bytes=").trim_end_matches('-').parse()?,
                "authorization" => token = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let request = HubRequest {
            method: method.to_owned(),
            path: path.to_owned(),
            start,
            has_token: token.is_some(),
            is_elsewhere,
            sent: 0,
        };
        let (number, fault, is_allowed) = {
            let mut state = self.state();
            state.requests.push(request.clone());
            let fault = state.faults.iter_mut().find(|(place, fault)| {
                (path.contains(&**place) || (is_elsewhere && place == ELSEWHERE)) && fault.applies(&request)
            });
            let fault = fault.map(|(_, fault)| fault.take());
            let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
            (state.requests.len() - 1, fault, is_elsewhere || wanted.is_none() || wanted == token)
        };
        answer::send(self, socket, number, &request, fault, is_allowed)
    }

    /// The answer about a model at a revision; `None` if there is none.
    fn model(&self, repo: &str, revision: &str) -> Option<Value> {
        let state = self.state();
        let newest = state.main.get(repo)?;
        let commit = if revision == "main" { newest } else { revision };
        let files = state.commits.get(&(repo.to_owned(), commit.to_owned()))?;
        let sibling = |(path, bytes): (&String, &Vec<u8>)| {
            let (etag, size) = (etag(path, bytes), bytes.len());
            match is_large(path) {
                true => json!({"rfilename": path, "size": size, "blobId": git(b"pointer"),
                               "lfs": {"sha256": etag, "size": size, "pointerSize": 134}}),
                false => json!({"rfilename": path, "size": size, "blobId": etag}),
            }
        };
        let siblings: Vec<Value> = files.iter().map(sibling).collect();
        Some(
            json!({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": false,
                    "downloads": 0, "likes": 0}),
        )
    }

    /// The list of files that newer Python clients ask for.
    fn tree(&self, repo: &str, commit: &str) -> Option<Value> {
        let state = self.state();
        let files = state.commits.get(&(repo.to_owned(), commit.to_owned()))?;
        let entry = |(path, bytes): (&String, &Vec<u8>)| {
            let (etag, size) = (etag(path, bytes), bytes.len());
            match is_large(path) {
                true => json!({"type": "file", "path": path, "size": size, "oid": git(b"pointer"),
                               "lfs": {"oid": etag, "size": size, "pointerSize": 134}}),
                false => json!({"type": "file", "path": path, "size": size, "oid": etag}),
            }
        };
        Some(files.iter().map(entry).collect())
    }

    /// The bytes of a file at a revision, and the commit.
    fn file(&self, repo: &str, revision: &str, path: &str) -> Option<(String, Vec<u8>)> {
        let state = self.state();
        let commit = if revision == "main" { state.main.get(repo)?.clone() } else { revision.to_owned() };
        let bytes = state.commits.get(&(repo.to_owned(), commit.clone()))?.get(path)?.clone();
        Some((commit, bytes))
    }
}

/// Whether the hub keeps the file apart from git.
fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf") || path.ends_with(".bin")
}

/// The checksum by which the hub names a file.
pub fn etag(path: &str, bytes: &[u8]) -> String {
    if is_large(path) { hex(&Sha256::digest(bytes)) } else { git(bytes) }
}

fn git(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
