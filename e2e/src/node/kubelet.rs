//! What `kubectl logs` asks a kubelet for, by way of the API server: GET /containerLogs/<namespace>/<pod>/<container>, over TLS with a certificate
//! that nobody checks, as where an API server is not told the kubelets' authority.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use jetwright_testing::{Authority, Certified};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::{NAME, Node};

/// The most that a request's head may take.
const HEAD: usize = 16 * 1024;
/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Which log is asked for, and how.
#[derive(Debug, Default, PartialEq)]
struct Question {
    namespace: String,
    pod: String,
    container: String,
    /// How many lines of its end; all where that is not said.
    tail: Option<usize>,
    follow: bool,
}

impl Node {
    /// Answers questions for logs, for as long as it is polled.
    ///
    /// # Errors
    ///
    /// When there can be no certificate.
    pub async fn answer(self: Arc<Self>, listener: TcpListener) -> Result<()> {
        let acceptor = acceptor()?;
        loop {
            let Ok((connection, _)) = listener.accept().await else { continue };
            let (node, acceptor) = (Arc::clone(&self), acceptor.clone());
            // Who does not listen to the answer needs no other.
            tokio::spawn(async move { node.tell_log(acceptor, connection).await });
        }
    }

    async fn tell_log(&self, acceptor: TlsAcceptor, connection: TcpStream) -> Result<()> {
        let mut client = acceptor.accept(connection).await?;
        let head = timeout(PATIENCE, head(&mut client)).await??;
        let found = parse(&head).map(|question| {
            let Question { namespace, pod, container, .. } = &question;
            (self.settings.logs.join(format!("{namespace}_{pod}_{container}.log")), question)
        });
        match found {
            Some((path, question)) if path.exists() => write_log(&mut client, path, &question).await?,
            _ => write_head(&mut client, "404 Not Found").await?,
        }
        client.shutdown().await?;
        Ok(())
    }
}

fn acceptor() -> Result<TlsAcceptor> {
    let Certified { certificate, key } = Authority::new(NAME).sign(NAME);
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn head(client: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD {
        let read = client.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        head.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8(head).context("a request in UTF-8")
}

/// What the head of a request asks for; None if it is something else. Names of Kubernetes have no slashes and begin with no dot, so that a path
/// that is made of them stays in its folder.
fn parse(head: &str) -> Option<Question> {
    let target = head.strip_prefix("GET ")?.split(' ').next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut names = path.strip_prefix("/containerLogs/")?.split('/').map(ToOwned::to_owned);
    let mut question = Question {
        namespace: names.next()?,
        pod: names.next()?,
        container: names.next()?,
        ..Question::default()
    };
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "tailLines" => question.tail = value.parse().ok(),
            "follow" => question.follow = value == "true",
            _ => {}
        }
    }
    Some(question)
}

/// The body ends with the connection.
async fn write_head(client: &mut (impl AsyncWrite + Unpin), status: &str) -> Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await?;
    Ok(())
}

async fn write_log(client: &mut (impl AsyncWrite + Unpin), path: PathBuf, question: &Question) -> Result<()> {
    let mut log = File::open(&path)?;
    let mut text = Vec::new();
    log.read_to_end(&mut text)?;
    write_head(client, "200 OK").await?;
    client.write_all(tail(&text, question.tail)).await?;
    client.flush().await?;
    // Until the container's pod is gone, and its log with it.
    while question.follow && path.exists() {
        sleep(POLL).await;
        text.clear();
        log.read_to_end(&mut text)?;
        client.write_all(&text).await?;
        client.flush().await?;
    }
    Ok(())
}

/// The last lines of a log.
fn tail(log: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return log };
    let whole = log.strip_suffix(b"\n").unwrap_or(log);
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index + 1);
    let begin = match lines {
        0 => log.len(),
        _ => ends.into_iter().nth(lines - 1).unwrap_or_default(),
    };
    &log[begin..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_a_log_and_how_much_of_it() {
        let asked =
            parse("GET /containerLogs/shop/orders-1/order-service?follow=true&tailLines=20 HTTP/1.1\r\n\r\n");
        let names = ["shop", "orders-1", "order-service"].map(ToOwned::to_owned);
        let [namespace, pod, container] = names;
        assert_eq!(asked, Some(Question { namespace, pod, container, tail: Some(20), follow: true }));
        assert_eq!(parse("GET /metrics HTTP/1.1\r\n\r\n"), None);
        assert_eq!(parse("POST /containerLogs/a/b/c HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn the_last_lines_of_a_log_are_whole() {
        for (lines, end) in [
            (None, "a\nb\nc\n"),
            (Some(0), ""),
            (Some(1), "c\n"),
            (Some(2), "b\nc\n"),
            (Some(9), "a\nb\nc\n"),
        ] {
            assert_eq!(tail(b"a\nb\nc\n", lines), end.as_bytes(), "{lines:?}");
        }
    }
}
