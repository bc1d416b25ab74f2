//! A client of NATS that sends what no library would.

use std::io;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A connection without a client library.
#[derive(Debug)]
pub struct RawClient {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl RawClient {
    /// Connects to the server of this `nats://` URL.
    pub async fn connect(url: &str) -> Self {
        let stream = worked(TcpStream::connect(url.trim_start_matches("nats://")).await);
        let (read, write) = stream.into_split();
        let mut client = Self { read: BufReader::new(read), write };
        client.write(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n").await;
        client.flush().await;
        client
    }

    /// Publishes a block of headers as it is, and returns when the server has it.
    pub async fn publish(&mut self, subject: impl AsRef<[u8]>, headers: &[u8], payload: &[u8]) {
        let sizes = (headers.len(), headers.len() + payload.len());
        self.write(&[b"HPUB ", subject.as_ref()].concat()).await;
        self.write(format!(" {} {}\r\n", sizes.0, sizes.1).as_bytes()).await;
        self.write(headers).await;
        self.write(payload).await;
        self.write(b"\r\n").await;
        self.flush().await;
    }

    /// Subscribes, and returns when the server has it.
    pub async fn subscribe(&mut self, subject: &str) {
        self.write(format!("SUB {subject} 1\r\n").as_bytes()).await;
        self.flush().await;
    }

    /// The reply subject of the next message.
    pub async fn next_reply_subject(&mut self) -> String {
        loop {
            let line = self.line().await;
            let words: Vec<_> = line.split_whitespace().collect();
            let [kind @ ("MSG" | "HMSG"), _, _, reply, .., size] = words[..] else { continue };
            assert!(words.len() == if kind == "MSG" { 5 } else { 6 }, "no reply subject: {line}");
            let mut body = vec![0; worked(size.parse::<usize>().map_err(io::Error::other)) + 2];
            worked(self.read.read_exact(&mut body).await);
            return reply.to_owned();
        }
    }

    async fn flush(&mut self) {
        self.write(b"PING\r\n").await;
        loop {
            match self.line().await {
                line if line.starts_with("PONG") => return,
                line => assert!(!line.starts_with("-ERR"), "{line}"),
            }
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(worked(self.read.read_line(&mut line).await), 0, "the server closed the connection");
        line
    }

    async fn write(&mut self, bytes: &[u8]) {
        worked(self.write.write_all(bytes).await);
    }
}

fn worked<T>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("the connection to NATS: {error}"))
}
