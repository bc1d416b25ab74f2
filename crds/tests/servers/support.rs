//! An API server that has the definitions, and a way to ask it about manifests.

use http::Request;
use jetwright_testing::{ControlPlane, Folder, Namespace, await_until};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Definitions are usually served within a second.
pub const SERVED: Duration = Duration::from_secs(30);

/// A folder or file of this repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

/// The shared control plane, with the definitions as plain `kubectl apply` made them, and what kubectl said then.
pub async fn defined() -> (&'static ControlPlane, &'static str) {
    static SAID: OnceCell<String> = OnceCell::const_new();
    let kubernetes = ControlPlane::shared().await;
    let said = SAID.get_or_init(async || {
        let said = apply_definitions(kubernetes);
        for kind in ["eventstreams", "eventconsumers"] {
            let established = ["wait", "--for=condition=Established", "--timeout=30s"];
            kubernetes.kubectl(established.iter().chain(&["crd", &format!("{kind}.jetwright.dev")])).unwrap();
            await_until(kind, SERVED, async || kubernetes.kubectl(["get", kind])).await;
        }
        said
    });
    (kubernetes, said.await)
}

/// Runs `kubectl apply -f crds/manifests`; a warning is an error.
pub fn apply_definitions(kubernetes: &ControlPlane) -> String {
    let manifests = path("crds/manifests");
    kubernetes.kubectl(["apply", "--warnings-as-errors", "-f", manifests.to_str().unwrap()]).unwrap()
}

/// A namespace, and kubectl for what is in it.
pub struct Objects(Namespace<'static>);

impl Objects {
    /// Applies the manifests in a new namespace, as a user does.
    pub async fn applied(manifests: &str) -> Self {
        let objects = Self(defined().await.0.namespace("objects").await);
        let folder = Folder::new("objects");
        let file = folder.path().join("objects.yaml");
        fs::write(&file, manifests).unwrap();
        objects.kubectl(&["apply", "-f", file.to_str().unwrap()]).unwrap();
        objects
    }

    /// What kubectl prints, or complains of.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let namespaced = ["-n", self.0.name()];
        self.0.control_plane().kubectl(namespaced.iter().chain(args)).map_err(|error| error.to_string())
    }

    /// Writes a status, in the operator's place.
    pub fn write_status(&self, object: &str, status: &str) {
        self.kubectl(&["patch", object, "--subresource=status", "--type=merge", "-p", status]).unwrap();
    }
}

/// Asks about manifests of one kind, as `kubectl apply` and `kubectl create` do: fields that the kind does not have are refused.
/// Manifests leave apiVersion, kind and, unless it matters, the name out.
pub struct Manifests {
    namespace: Namespace<'static>,
    kind: &'static str,
    count: AtomicU32,
}

impl Manifests {
    pub async fn of_streams() -> Self {
        Self::of("EventStream").await
    }

    pub async fn of_consumers() -> Self {
        Self::of("EventConsumer").await
    }

    async fn of(kind: &'static str) -> Self {
        let namespace = defined().await.0.namespace("schema").await;
        Self { namespace, kind, count: AtomicU32::new(0) }
    }

    /// The manifest can be created; returns its spec as the API server would keep it.
    pub async fn accepts(&self, manifest: &str) -> Value {
        match self.create(&self.object(manifest), "&dryRun=All").await {
            Ok(mut object) => object["spec"].take(),
            Err(error) => panic!("refused:\n{manifest}\n{error}"),
        }
    }

    /// The manifest cannot be created, and the error has these words.
    pub async fn rejects(&self, manifest: &str, words: &str) {
        let answer = self.create(&self.object(manifest), "&dryRun=All").await;
        refused_with(words, manifest, answer);
    }

    /// What was created from the one manifest can become the other, whether or not there is something in JetStream.
    pub async fn accepts_change(&self, from: &str, to: &str) {
        for exists in [false, true] {
            if let Err(error) = self.change(from, to, exists).await {
                panic!("refused:\n{from}\n->\n{to}\n{error}");
            }
        }
    }

    /// What was created from the one manifest cannot become the other, and the error has these words.
    pub async fn rejects_change(&self, from: &str, to: &str, words: &str) {
        refused_with(words, &format!("{from}\n->\n{to}"), self.change(from, to, false).await);
    }

    /// The same, but only once the status says that there is something in JetStream: until then the change is accepted.
    pub async fn rejects_change_once_there(&self, from: &str, to: &str, words: &str) {
        if let Err(error) = self.change(from, to, false).await {
            panic!("refused with nothing in JetStream:\n{from}\n->\n{to}\n{error}");
        }
        refused_with(words, &format!("{from}\n->\n{to}"), self.change(from, to, true).await);
    }

    async fn create(&self, object: &Value, query: &str) -> Result<Value, String> {
        let uri = format!("{}?fieldValidation=Strict{query}", self.collection());
        self.send(Request::post(uri), object).await
    }

    /// `exists`: whether the status describes something in JetStream.
    async fn change(&self, from: &str, to: &str, exists: bool) -> Result<Value, String> {
        let before = self.object(from);
        let query = "?fieldValidation=Strict";
        let mut known = self.create(&before, "").await.unwrap_or_else(|error| panic!("{from}\n{error}"));
        let uri = format!("{}/{}", self.collection(), before["metadata"]["name"].as_str().unwrap());
        if exists {
            known["status"] = self.status_of_existing();
            known = self.send(Request::put(format!("{uri}/status{query}")), &known).await.unwrap();
        }
        let mut after = self.object(to);
        after["metadata"]["name"] = known["metadata"]["name"].clone();
        after["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"].clone();
        let changed = self.send(Request::put(format!("{uri}{query}&dryRun=All")), &after).await;
        self.send(Request::delete(uri), &json!({})).await.unwrap();
        changed
    }

    fn status_of_existing(&self) -> Value {
        match self.kind {
            "EventStream" => json!({"stream": {
                "name": "a", "replicas": 1, "messages": 0, "bytes": 0, "firstSequence": 1, "lastSequence": 0, "consumers": 0,
                "partitions": 8,
            }}),
            _ => json!({"consumer": {"stream": "a", "name": "b"}}),
        }
    }

    async fn send(&self, request: http::request::Builder, object: &Value) -> Result<Value, String> {
        let request = request.header("Content-Type", "application/json");
        let request = request.body(serde_json::to_vec(object).unwrap()).unwrap();
        self.namespace.client().request(request).await.map_err(|error| match error {
            kube::Error::Api(status) => status.message,
            other => panic!("not the API server's answer: {other}"),
        })
    }

    fn collection(&self) -> String {
        let plural = format!("{}s", self.kind.to_lowercase());
        format!("/apis/jetwright.dev/v1alpha1/namespaces/{}/{plural}", self.namespace.name())
    }

    fn object(&self, manifest: &str) -> Value {
        let mut object: Value = serde_saphyr::from_str(manifest).unwrap();
        object["apiVersion"] = json!("jetwright.dev/v1alpha1");
        object["kind"] = json!(self.kind);
        if object["metadata"]["name"].is_null() {
            let number = self.count.fetch_add(1, Ordering::Relaxed);
            object["metadata"]["name"] = json!(format!("m{number}"));
        }
        object
    }
}

fn refused_with(words: &str, manifest: &str, answer: Result<Value, String>) {
    match answer {
        Ok(_) => panic!("accepted, though it should be refused with {words:?}:\n{manifest}"),
        Err(error) => assert!(error.contains(words), "not refused with {words:?}:\n{manifest}\n{error}"),
    }
}
