//! Probes of a container: by HTTP, or by a TCP connection.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container as Spec, Probe as ProbeSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::container::Unstartable;

/// A probe, and what came of it so far.
pub struct Probe {
    check: Check,
    period: Duration,
    timeout: Duration,
    failure_threshold: u32,
    success_threshold: u32,
    next: Instant,
    /// Answers of the same kind in a row.
    failures: u32,
    successes: u32,
    holds: bool,
}

enum Check {
    Http(reqwest::Client, String),
    Tcp(SocketAddr),
}

impl Probe {
    /// A probe that holds until it fails too often.
    pub fn new(spec: &ProbeSpec, container: &Spec, address: Ipv4Addr) -> Result<Self, Unstartable> {
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| value.try_into().ok()).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(count(value, default).into());
        let check = if let Some(http) = &spec.http_get {
            let port = port(container, &http.port)?;
            let path = http.path.as_deref().unwrap_or_default().trim_start_matches('/');
            Check::Http(reqwest::Client::new(), format!("http://{address}:{port}/{path}"))
        } else if let Some(tcp) = &spec.tcp_socket {
            Check::Tcp((address, port(container, &tcp.port)?).into())
        } else {
            return Err(unsupported("has a probe that is neither httpGet nor tcpSocket", container));
        };
        Ok(Self {
            check,
            period: seconds(spec.period_seconds, 10),
            timeout: seconds(spec.timeout_seconds, 1),
            failure_threshold: count(spec.failure_threshold, 3),
            success_threshold: count(spec.success_threshold, 1),
            next: Instant::now() + seconds(spec.initial_delay_seconds, 0),
            failures: 0,
            successes: 0,
            holds: true,
        })
    }

    /// A readiness probe, which does not hold before it succeeded.
    pub fn that_has_to_succeed(mut self) -> Self {
        self.holds = false;
        self
    }

    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Whether it failed as often in a row as it may.
    pub fn has_failed(&self) -> bool {
        self.failures >= self.failure_threshold
    }

    /// Asks, if it is due.
    pub async fn ask(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + self.period;
        let answer = async {
            match &self.check {
                Check::Http(client, url) => {
                    client.get(url).send().await.is_ok_and(|answer| answer.status().as_u16() < 400)
                }
                Check::Tcp(address) => TcpStream::connect(address).await.is_ok(),
            }
        };
        let good = timeout(self.timeout, answer).await.unwrap_or(false);
        self.count(good);
    }

    fn count(&mut self, good: bool) {
        (self.successes, self.failures) = if good { (self.successes + 1, 0) } else { (0, self.failures + 1) };
        if self.successes >= self.success_threshold {
            self.holds = true;
        } else if self.has_failed() {
            self.holds = false;
        }
    }
}

/// The number of a container's port, which may be given by its name.
pub fn port(container: &Spec, port: &IntOrString) -> Result<u16, Unstartable> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port)
        }
    };
    let number = number.and_then(|number| number.try_into().ok());
    number.ok_or_else(|| unsupported(&format!("has no port {port:?}, which a probe names"), container))
}

/// What this node cannot run.
pub fn unsupported(what: &str, container: &Spec) -> Unstartable {
    let message = format!("container {} {what}: this node runs no such thing", container.name);
    Unstartable { reason: "CreateContainerConfigError", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(spec: serde_json::Value) -> Probe {
        let container = serde_json::from_value(serde_json::json!({
            "name": "app", "ports": [{"name": "admin", "containerPort": 9090}],
        }));
        let spec = serde_json::from_value(spec).unwrap();
        Probe::new(&spec, &container.unwrap(), Ipv4Addr::new(127, 77, 0, 1)).unwrap()
    }

    #[test]
    fn a_probe_fails_after_as_many_failures_in_a_row_as_it_says() {
        let mut probe =
            probe(serde_json::json!({"httpGet": {"path": "/livez", "port": "admin"}, "failureThreshold": 2}));
        assert!(matches!(&probe.check, Check::Http(_, url) if url == "http://127.77.0.1:9090/livez"));
        for (good, holds) in [(false, true), (true, true), (false, true), (false, false), (true, true)] {
            probe.count(good);
            assert_eq!(probe.holds(), holds);
        }
    }

    #[test]
    fn a_readiness_probe_does_not_hold_before_it_succeeded() {
        let mut probe = probe(serde_json::json!({"tcpSocket": {"port": 8080}})).that_has_to_succeed();
        assert!(!probe.holds());
        probe.count(true);
        assert!(probe.holds());
    }
}
