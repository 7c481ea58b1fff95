//! The end of a connection as its client sees it, frame by frame.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// ACK of settings and pings, END_STREAM of calls.
const FLAG: u8 = 1;
const END_HEADERS: u8 = 4;

/// A client that gives window to each of its calls at once, as HTTP/2 allows.
struct Connection(TcpStream);

impl Connection {
    async fn open(server: &Server) -> Self {
        let mut connection = Self(TcpStream::connect(&server.address).await.expect("a connection"));
        connection.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("a preface");
        connection.write(SETTINGS, 0, 0, &[]).await;
        connection
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        // A server that has closed hears nothing more.
        let _ = self.0.write_all(&[&head, payload].concat()).await;
    }

    /// Sends a message, in a call of a number.
    async fn send(&mut self, stream: u32) {
        let send =
            SendRequest { queue: "orders".to_owned(), message: stream.to_string(), ..Default::default() };
        self.call(stream, "/pgmq.v1.QueueService/Send", &send).await;
    }

    /// Makes a call of a number.
    async fn call(&mut self, stream: u32, path: &str, request: &impl Message) {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let texts = fields.iter().flat_map(|(name, value)| [("\0", *name), ("", *value)]);
        let fields = texts.flat_map(|(mark, text)| {
            let length = u8::try_from(text.len()).expect("a short text");
            [mark.as_bytes(), &[length], text.as_bytes()].concat()
        });
        self.write(HEADERS, END_HEADERS, stream, &fields.collect::<Vec<u8>>()).await;
        self.write(WINDOW_UPDATE, 0, stream, &5_u32.to_be_bytes()).await;
        let request = request.encode_to_vec();
        let length = u32::try_from(request.len()).expect("a small message").to_be_bytes();
        self.write(DATA, FLAG, stream, &[&[0], &length[..], &request].concat()).await;
    }

    /// The next frame but for settings: its kind, whether it has the flag, its stream, and what it holds.
    async fn next(&mut self) -> Option<(u8, bool, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let has_flag = flags & FLAG != 0;
            match kind {
                SETTINGS if !has_flag => self.write(SETTINGS, FLAG, 0, &[]).await,
                SETTINGS => {}
                kind => return Some((kind, has_flag, u32::from_be_bytes(stream), payload)),
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_sends_before_it_heard_of_the_end_costs_no_call_under_way_its_answer() {
    let test = Test::with_queue("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut connection = Connection::open(&test.server).await;
    connection.send(1).await;
    gate.arrival(&test, "send").await;
    test.server.signal(Signal::SIGTERM);
    draining(&test.server).await;
    gate.open(&test).await;

    let mut seen = Vec::new();
    while let Some((kind, has_flag, stream, payload)) = connection.next().await {
        match kind {
            HEADERS if has_flag => seen.push(stream),
            // With this the server asks whether the client has heard. It has, and had sent another call before.
            PING if !has_flag => {
                seen.push(0);
                connection.write(PING, FLAG, 0, &payload).await;
                connection.send(3).await;
            }
            _ => {}
        }
    }
    assert_eq!(seen, [1, 0], "the answer, and then the end");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
    let (status, log) = test.server.exit().await;
    assert!(status.success(), "{log}");
}

#[tokio::test]
async fn open_streams_do_not_hold_up_the_word_that_calls_are_to_go_elsewhere() {
    // Less than calls under way are waited for, and then the connection is cut off.
    let database = TestDatabase::create().await;
    let server = Server::start_on(&database, &["--drain-timeout", "1s"]).await;
    let mut connection = Connection::open(&server).await;
    connection.call(1, "/grpc.health.v1.Health/Watch", &HealthCheckRequest::default()).await;
    while !matches!(connection.next().await.expect("an answer"), (DATA, _, 1, _)) {}

    server.signal(Signal::SIGTERM);

    let mut heard = false;
    while let Some((kind, _, stream, _)) = connection.next().await {
        heard |= kind == GOAWAY;
        assert!(stream != 1 || kind != HEADERS, "the stream has ended by itself");
    }
    assert!(heard, "the connection was cut off without a word");
    let (status, log) = server.exit().await;
    assert!(status.success(), "{log}");
}
