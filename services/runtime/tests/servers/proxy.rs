//! A network between client and server that loses answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Passes everything on between clients and one server, except the answers that it is told to lose.
pub struct Proxy {
    pub url: String,
    to_lose: Arc<AtomicUsize>,
    ages: Arc<AtomicBool>,
}

impl Proxy {
    /// Before the server of this `nats://` URL. It loses messages of which this is so, by the words of the protocol before the payload,
    /// and the payload.
    pub async fn before(server: &str, concerned: fn(&str, &str) -> bool) -> Self {
        Self::start(server, concerned, false).await
    }

    async fn start(server: &str, concerned: fn(&str, &str) -> bool, ages: bool) -> Self {
        let server = server.trim_start_matches("nats://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let to_lose = Arc::new(AtomicUsize::new(0));
        let ages = Arc::new(AtomicBool::new(ages));
        let (counter, is_aging) = (Arc::clone(&to_lose), Arc::clone(&ages));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(upstream) = TcpStream::connect(&server).await else { continue };
                // As clients and servers of NATS do: what is small does not wait until what went before it is confirmed.
                client.set_nodelay(true).unwrap();
                upstream.set_nodelay(true).unwrap();
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = upstream.into_split();
                tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
                tokio::spawn(pass(
                    from_server,
                    to_client,
                    concerned,
                    Arc::clone(&counter),
                    Arc::clone(&is_aging),
                ));
            }
        });
        Self { url, to_lose, ages }
    }

    /// Before a server whose streams and consumers seem to be a hundred years old.
    pub async fn aging(server: &str) -> Self {
        Self::aging_and_losing(server, |_, _| false).await
    }

    /// The same, and it loses messages as [`before`](Self::before) does.
    pub async fn aging_and_losing(server: &str, concerned: fn(&str, &str) -> bool) -> Self {
        Self::start(server, concerned, true).await
    }

    /// From now on everything is as old as it is.
    pub fn stop_aging(&self) {
        self.ages.store(false, Ordering::SeqCst);
    }

    /// Loses as many of the messages that come next.
    pub fn lose(&self, count: usize) {
        self.to_lose.store(count, Ordering::SeqCst);
    }

    /// How many are still to be lost.
    pub fn left_to_lose(&self) -> usize {
        self.to_lose.load(Ordering::SeqCst)
    }
}

/// Passes lines of NATS' protocol on, and what MSG and HMSG carry.
async fn pass(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    concerned: fn(&str, &str) -> bool,
    to_lose: Arc<AtomicUsize>,
    ages: Arc<AtomicBool>,
) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        let words = String::from_utf8_lossy(&line).into_owned();
        if words.starts_with("MSG ") || words.starts_with("HMSG ") {
            let size: usize = words.split_whitespace().next_back().unwrap().parse().unwrap();
            let mut payload = vec![0; size + 2];
            if from.read_exact(&mut payload).await.is_err() {
                return;
            }
            let one_less = |left: usize| left.checked_sub(1);
            if concerned(&words, String::from_utf8_lossy(&payload).trim_end())
                && to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
            {
                line.clear();
                continue;
            }
            if ages.load(Ordering::SeqCst) {
                age(&mut payload);
            }
            line.extend(payload);
        }
        if to.write_all(&line).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// Has what is described there be a hundred years older.
fn age(payload: &mut [u8]) {
    const CREATED: &[u8] = b"\"created\":\"20";
    if let Some(at) = payload.windows(CREATED.len()).position(|part| part == CREATED) {
        payload[at + CREATED.len() - 2..at + CREATED.len()].copy_from_slice(b"19");
    }
}
