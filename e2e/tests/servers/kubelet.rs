//! What the API server is told of a pod whose program a test runs: that it is there, runs and is ready, and that its container ended.

use std::{
    process::ExitStatus,
    sync::{Arc, Weak, atomic::AtomicU32, atomic::Ordering},
    time::Duration,
};

use jetwright_testing::{Namespace, Process};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// How soon the end of a container is told.
const POLL: Duration = Duration::from_millis(50);

/// A pod in the API server.
#[derive(Clone)]
pub struct Kubelet {
    api: Api<Pod>,
    name: String,
    pub uid: String,
    container: Container,
    restarts: Arc<AtomicU32>,
}

impl Kubelet {
    /// Makes the pod, as the Deployment's controllers do.
    pub async fn create(namespace: &Namespace<'_>, name: &str, deployment: &Deployment) -> Self {
        let api: Api<Pod> = namespace.api();
        let template = deployment.spec.as_ref().unwrap().template.clone();
        let mut metadata =
            ObjectMeta { name: Some(name.to_owned()), ..template.metadata.unwrap_or_default() };
        // The tests change no template under running pods, so all are of one.
        metadata.labels.get_or_insert_default().insert("pod-template-hash".to_owned(), "one".to_owned());
        let spec = template.spec.unwrap();
        let container = spec.containers[0].clone();
        let pod = Pod { metadata, spec: Some(spec), status: None };
        // One of an earlier template, which ran by that name, has ended.
        let _ = api.delete(name, &DeleteParams::default().grace_period(0)).await;
        let made = api.create(&PostParams::default(), &pod).await.unwrap();
        let (name, uid) = (name.to_owned(), made.metadata.uid.unwrap());
        Self { api, name, uid, container, restarts: Arc::default() }
    }

    /// Tells that the container runs, and tells its end when it comes.
    pub async fn started(&self, process: &Arc<Process>) {
        let since = now();
        let running = json!({"running": {"startedAt": since}});
        self.tell(true, running, json!({})).await;
        let (kubelet, process) = (self.clone(), Arc::downgrade(process));
        tokio::spawn(async move {
            let Some(status) = ended(&process).await else { return };
            kubelet.restarts.fetch_add(1, Ordering::Relaxed);
            let terminated = json!({"terminated": {
                "exitCode": status.code().unwrap_or(137), "reason": "Error", "startedAt": since, "finishedAt": now(),
            }});
            kubelet.tell(false, terminated.clone(), terminated).await;
        });
    }

    async fn tell(&self, is_ready: bool, state: Value, last: Value) {
        let ready = if is_ready { "True" } else { "False" };
        let container = json!({
            "name": self.container.name, "image": self.container.image, "imageID": "", "ready": is_ready,
            "started": is_ready, "restartCount": self.restarts.load(Ordering::Relaxed), "state": state, "lastState": last,
        });
        let condition = |type_: &str| json!({"type": type_, "status": ready, "lastTransitionTime": now()});
        let status = json!({"status": {
            "phase": "Running", "conditions": [condition("Ready"), condition("ContainersReady")],
            "containerStatuses": [container],
        }});
        // The namespace may be gone when the test ends.
        let _ = self.api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(status)).await;
    }
}

/// How it ended; none if nobody cares any more.
async fn ended(process: &Weak<Process>) -> Option<ExitStatus> {
    loop {
        if let Some(status) = process.upgrade()?.exited() {
            return Some(status);
        }
        sleep(POLL).await;
    }
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}
