//! The chart `charts/shop`: what Helm makes of it, applied to a namespace.

use std::{
    fs,
    process::{Command, Output},
};

use jetwright_e2e::{control_plane, path};
use jetwright_testing::{Folder, Namespace, Program};
use serde_json::Value;

/// The manifests that Helm makes of these values, or what it says of them.
pub fn render(namespace: &str, values: &Value) -> Result<String, String> {
    let folder = Folder::new("values");
    let file = folder.path().join("values.json");
    fs::write(&file, values.to_string()).unwrap();
    let mut helm = Command::new(Program::Helm.path());
    helm.args(["template", "shop", &path("../charts/shop"), "--namespace", namespace, "--values"]).arg(file);
    let Output { status, stdout, stderr } = helm.output().unwrap();
    if status.success() {
        Ok(String::from_utf8(stdout).unwrap())
    } else {
        Err(String::from_utf8(stderr).unwrap())
    }
}

/// Applies the chart with these values, as those do who have kubectl alone run in the cluster.
pub async fn apply(namespace: &Namespace<'_>, values: Value) {
    let (control_plane, name, folder) =
        (control_plane().await, namespace.name().to_owned(), Folder::new("chart"));
    let applied = tokio::task::spawn_blocking(move || {
        let file = folder.path().join("shop.yaml");
        fs::write(&file, render(&name, &values).unwrap()).unwrap();
        control_plane.kubectl(["apply", "-n", &name, "-f", &file.display().to_string()])
    });
    applied.await.unwrap().unwrap();
}
