//! Applying manifests.

use crate::awaiting::try_until;
use anyhow::{Context, Result, anyhow, ensure};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Definitions are usually served within a second.
const SERVED: Duration = Duration::from_secs(20);
const MANAGER: &str = "jetwright-testing";

/// Applies the documents of a YAML file, or of those of a folder in the order of their names, and waits until definitions
/// among them are served.
pub(crate) async fn apply(client: &Client, path: &Path) -> Result<()> {
    for file in files(path)? {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let objects: Vec<DynamicObject> =
            serde_saphyr::from_multiple(&text).with_context(|| file.display().to_string())?;
        for object in objects {
            let name = object.metadata.name.clone().unwrap_or_default();
            apply_object(client, &object).await.with_context(|| format!("{name} in {}", file.display()))?;
        }
    }
    Ok(())
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "there is no .yaml file in {}", path.display());
    Ok(files)
}

async fn apply_object(client: &Client, object: &DynamicObject) -> Result<()> {
    let types = object.types.as_ref().context("it has no apiVersion and kind")?;
    let name = object.metadata.name.as_deref().context("it has no name")?;
    let (resource, capabilities) = pinned_kind(client, &GroupVersionKind::try_from(types)?).await?;
    let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
        (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &resource),
        (Scope::Namespaced, None) => Api::default_namespaced_with(client.clone(), &resource),
    };
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await?;
    if types.kind == "CustomResourceDefinition" {
        served(client, &api, name).await?;
    }
    Ok(())
}

/// Waits until a definition is established, and its objects can be listed.
async fn served(client: &Client, definitions: &Api<DynamicObject>, name: &str) -> Result<()> {
    let waited = try_until(SERVED, async || {
        let definition = definitions.get(name).await?.data;
        let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let established = |c: &serde_json::Value| c["type"] == "Established" && c["status"] == "True";
        ensure!(conditions.iter().any(established), "its conditions are {conditions:?}");
        for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let (group, kind) =
                (text(&definition["spec"]["group"]), text(&definition["spec"]["names"]["kind"]));
            let kind = GroupVersionKind { group, version: text(&version["name"]), kind };
            if version["served"] == true {
                let (resource, _) = pinned_kind(client, &kind).await?;
                Api::<DynamicObject>::all_with(client.clone(), &resource)
                    .list(&ListParams::default().limit(1))
                    .await?;
            }
        }
        Ok(())
    });
    waited.await.map_err(|last| anyhow!("it is not served after {SERVED:?}: {last}"))
}
