//! The HTTP clients of the tests: one for whole exchanges, and one that writes and reads the bytes of a connection.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use common::sse::{SseMessage, SseReader};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use ureq::http::Response;
use ureq::{Agent, Body};

/// Maximum wait for an expected event.
pub(super) const WAIT: Duration = Duration::from_secs(20);

/// The chunk with which a silent stream is kept alive.
pub(super) const BLANK_LINE: &str = "\r\n1\r\n\n\r\n";

/// A short period, for tests in which a period has to pass.
pub(super) const SOON: Duration = Duration::from_millis(100);

/// The header of a JSON body.
pub(super) const JSON: (&str, &str) = ("content-type", "application/json");

/// Sends whole requests.
pub(super) struct HttpClient {
    agent: Agent,
    address: SocketAddr,
}

impl HttpClient {
    pub(super) fn new(address: SocketAddr) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT));
        Self { agent: config.build().into(), address }
    }

    /// Posts a body. The request's id is `t`.
    pub(super) fn send(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let request = self.agent.post(format!("http://{}{path}", self.address)).header("x-request-id", "t");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send(body.as_bytes()).unwrap()
    }

    /// Posts a JSON body; status and body of the response.
    pub(super) fn post(&self, path: &str, body: &str) -> (u16, String) {
        read(self.send(path, body, &[JSON]))
    }

    pub(super) fn get(&self, path: &str) -> (u16, String) {
        read(self.agent.get(format!("http://{}{path}", self.address)).call().unwrap())
    }

    /// Asks for a path with these headers. The body of the response may still come.
    pub(super) fn begin(&self, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let request = self.agent.get(format!("http://{}{path}", self.address));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).call().unwrap()
    }

    /// Posts a body that must be refused. `field` is empty if the error names no field.
    pub(super) fn refused(&self, path: &str, body: &str, status: u16, field: &str, words: &str) {
        let (got, text) = self.post(path, body);
        assert_eq!(got, status, "{text}");
        let error = serde_json::from_str::<Value>(&text).unwrap()["error"].clone();
        assert_eq!(error["param"].as_str().unwrap_or_default(), field, "{text}");
        assert_eq!(error["code"], status, "{text}");
        assert!(error["message"].as_str().unwrap().contains(words), "{text}");
    }

    /// Opens a connection and sends nothing.
    pub(super) fn connect(&self) -> RawClient {
        let socket = TcpStream::connect(self.address).unwrap();
        RawClient::new(socket)
    }

    /// Opens a connection with a receive buffer of this size.
    pub(super) fn connect_with_room(&self, bytes: usize) -> RawClient {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&self.address.into()).unwrap();
        RawClient::new(socket.into())
    }

    /// Opens a connection and asks for a completion of "a"; `more` are further fields of the body, each after a comma.
    pub(super) fn ask(&self, more: &str) -> RawClient {
        let mut client = self.connect();
        client.ask(more);
        client
    }
}

/// Status and body of a response.
pub(super) fn read(mut response: Response<Body>) -> (u16, String) {
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leave {
    Close,
    HalfClose,
    Reset,
}

/// A connection whose bytes the test writes and reads.
pub(super) struct RawClient {
    pub(super) socket: TcpStream,
}

impl RawClient {
    fn new(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.set_write_timeout(Some(WAIT)).unwrap();
        Self { socket }
    }

    /// Sends the head of a completion request with these headers, separated by line ends.
    pub(super) fn post_head(&mut self, headers: &str) {
        self.write(format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n"));
    }

    pub(super) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap();
    }

    /// Asks for a completion of "a"; `more` are further fields of the body, each after a comma.
    pub(super) fn ask(&mut self, more: &str) {
        let body = format!(r#"{{"prompt": "a"{more}}}"#);
        self.post_head(&format!("content-length: {}", body.len()));
        self.write(body);
    }

    /// Reads exactly these bytes.
    pub(super) fn expect(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.socket.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// Reads until these words have come; all that has been read.
    pub(super) fn until(&mut self, words: &str) -> String {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while !text.contains(words) {
            let count = self.socket.read(&mut bytes).expect("in time");
            assert!(count > 0, "the answer ended without {words:?}: {text}");
            text += std::str::from_utf8(&bytes[..count]).unwrap();
        }
        text
    }

    /// Reads until the server closes or resets the connection.
    pub(super) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.socket.read_to_end(&mut bytes) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                panic!("the connection was not closed in time: {error}")
            }
            _ => String::from_utf8(bytes).unwrap(),
        }
    }

    /// Leaves. Returns the client whose socket is half closed.
    pub(super) fn leave(self, how: Leave) -> Option<Self> {
        match how {
            Leave::Close => None,
            Leave::HalfClose => {
                self.socket.shutdown(Shutdown::Write).unwrap();
                Some(self)
            }
            Leave::Reset => {
                SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
                None
            }
        }
    }
}

/// The messages of a streamed answer, as they come.
pub(super) struct LiveStream(SseReader<Box<dyn std::io::BufRead>>);

impl LiveStream {
    pub(super) fn of(response: Response<Body>) -> Self {
        assert_eq!(response.status(), 200);
        Self(SseReader::new(Box::new(BufReader::new(response.into_body().into_reader()))))
    }

    /// The next event; `None` at the end. Blank lines between events are skipped.
    pub(super) fn next(&mut self) -> Option<SseMessage> {
        self.0.next().map(Result::unwrap)
    }

    /// The data of the next event.
    pub(super) fn next_event(&mut self) -> String {
        match self.next().expect("the stream goes on") {
            SseMessage::Data(data) => data,
            SseMessage::Comment(comment) => panic!("there is a comment: {comment}"),
        }
    }
}

/// The data of each event in the body of a streamed answer. Panics on any other framing.
pub(super) fn events(body: &str) -> Vec<String> {
    let messages = SseReader::new(body.as_bytes()).map(Result::unwrap);
    let data = messages.map(|message| match message {
        SseMessage::Data(data) => data,
        SseMessage::Comment(comment) => panic!("there is a comment: {comment}"),
    });
    let events: Vec<String> = data.collect();
    assert_eq!(events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>(), body);
    events
}
