//! HTTP to the cluster's Services through the API server, which sends each request to a pod that is ready. Unlike a forwarded port it
//! outlives the pods.

use std::time::Duration;

use jetwright_testing::Process;
use serde_json::Value;

/// How long a service may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long kubectl may take to start.
const START: Duration = Duration::from_secs(20);

pub(super) struct Gateway {
    url: String,
    client: reqwest::Client,
    _kubectl: Process,
}

/// An answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's status code.
    pub status: u16,
    /// The body, if it is JSON.
    pub body: Value,
}

impl Gateway {
    pub(super) async fn open() -> Self {
        let kubectl = Process::builder("kubectl")
            .name("kubectl-proxy")
            .env("KUBECONFIG", std::env::var_os("KUBECONFIG").unwrap_or_default())
            .args(["proxy", "--port=0"])
            .start();
        let line = kubectl.await_log("Starting to serve on ", START).await;
        let address = line.rsplit(' ').next().unwrap_or_default();
        let client = reqwest::Client::builder().timeout(ANSWER).build();
        Self {
            url: format!("http://{address}"),
            client: client.unwrap_or_else(|error| panic!("no HTTP client: {error}")),
            _kubectl: kubectl,
        }
    }

    /// Asks a Service, named as `namespace/name:port`.
    pub(super) async fn get(&self, service: &str, path: &str) -> Result<Answer, String> {
        self.send(self.client.get(self.url_of("services", service, path))).await
    }

    /// Asks a pod, named as `namespace/name:port`.
    pub(super) async fn get_of_pod(&self, pod: &str, path: &str) -> Result<Answer, String> {
        self.send(self.client.get(self.url_of("pods", pod, path))).await
    }

    /// Sends JSON to a Service, with a key by which the same request is known again.
    pub(super) async fn post(
        &self,
        service: &str,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<Answer, String> {
        let request = self.client.post(self.url_of("services", service, path)).header("idempotency-key", key);
        self.send(request.header("content-type", "application/json").body(body.to_string())).await
    }

    fn url_of(&self, kind: &str, of: &str, path: &str) -> String {
        let (namespace, name) = of.split_once('/').unwrap_or(("default", of));
        format!("{}/api/v1/namespaces/{namespace}/{kind}/{name}/proxy{path}", self.url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, String> {
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| error.to_string())?;
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }
}
