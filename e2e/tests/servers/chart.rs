//! The charts: what Helm makes of them, applied to a namespace.

use std::{
    fs,
    process::{Command, Output},
    sync::Arc,
};

use jetwright_e2e::{control_plane, path};
use jetwright_testing::{ControlPlane, Folder, Namespace, Program};
use serde_json::Value;

/// Runs Helm in the folder of this crate, and returns what it printed, or what it complained of.
pub fn helm(control_plane: Option<&ControlPlane>, args: &[&str]) -> Result<String, String> {
    let mut helm = Command::new(Program::Helm.path());
    helm.args(args).current_dir(path("."));
    if let Some(control_plane) = control_plane {
        helm.env("KUBECONFIG", control_plane.kubeconfig());
    }
    let Output { status, stdout, stderr } = helm.output().unwrap();
    if status.success() {
        Ok(String::from_utf8(stdout).unwrap())
    } else {
        Err(String::from_utf8(stderr).unwrap())
    }
}

/// Manifests that Helm makes for a namespace.
pub struct Chart {
    /// The release's name too.
    name: &'static str,
    args: &'static [&'static str],
}

impl Chart {
    /// The shop.
    pub fn shop() -> Self {
        Self { name: "shop", args: &[] }
    }

    /// NATS' users and configuration, as the operator's chart makes them of the values that the shop has for it.
    pub fn nats_users() -> Self {
        let args =
            &["--values", "../charts/shop/nats-users.yaml", "--show-only", "templates/nats/secrets.yaml"];
        Self { name: "jetwright", args }
    }

    /// What Helm makes of these values, or says of them.
    pub fn render(&self, namespace: &str, values: &Value) -> Result<String, String> {
        self.render_in(&Folder::new(self.name), namespace, values)
    }

    fn render_in(&self, folder: &Folder, namespace: &str, values: &Value) -> Result<String, String> {
        let file = folder.path().join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        let (chart, file) = (format!("../charts/{}", self.name), file.display().to_string());
        let args = ["template", self.name, &chart, "--namespace", namespace];
        helm(None, &[&args, self.args, &["--values", &file]].concat())
    }

    /// Applies what Helm makes of these values, as those do who let only kubectl change a cluster.
    pub async fn apply(self, namespace: &Namespace<'_>, values: Value) {
        let (control_plane, namespace) = (control_plane().await, namespace.name().to_owned());
        let folder: Arc<Folder> = Folder::new(self.name);
        let applied = tokio::task::spawn_blocking(move || {
            let file = folder.path().join("manifests.yaml");
            fs::write(&file, self.render_in(&folder, &namespace, &values).unwrap()).unwrap();
            control_plane.kubectl(["apply", "-n", &namespace, "-f", &file.display().to_string()])
        });
        applied.await.unwrap().unwrap();
    }
}
